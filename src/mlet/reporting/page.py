"""HTML pages: self-contained, one style for all."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from mlet import __version__


def render(template: str, **values: object) -> str:
    """A page from ``mlet/reporting/templates``, given ``version`` beside the values."""
    environment = Environment(
        loader=PackageLoader("mlet.reporting"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(version=__version__, **values)
