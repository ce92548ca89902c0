"""The report of a comparison: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlet import __version__
from mlet.atomic import write_text
from mlet.experiments.plots import auc_curves
from mlet.experiments.results import Comparison
from mlet.experiments.table import COLUMNS, table_rows


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write ``report.html`` and its figure ``curves.svg`` into ``out``; returns the page's path."""
    svg = auc_curves(comparison)
    environment = Environment(
        loader=PackageLoader("mlet.experiments"), autoescape=True, undefined=StrictUndefined
    )
    best = None
    for arm in comparison.arms:
        if arm.inner_dim is not None:
            gain = comparison.gain(arm)
            if best is None or gain.mean > best[1].mean:
                best = (arm, gain)
    page = environment.get_template("report.html.j2").render(
        comparison=comparison,
        schema=comparison.schema,
        base_yaml=comparison.base.to_yaml(),
        columns=COLUMNS,
        rows=table_rows(comparison),
        svg=Markup(svg),
        best=best,
        version=__version__,
    )
    write_text(out / "curves.svg", svg)
    path = out / "report.html"
    write_text(path, page)
    return path
