"""The look of all figures, and how they become text for a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLT_COLOUR = "#6b7280"
MLET_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626")
MARKERS = ("o", "s", "^", "D", "v")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mlet",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 11,
}
_numbers = count()


@contextmanager
def figure_style() -> Iterator[None]:
    """Within the context, figures have the common look."""
    # Imported on use: loading matplotlib takes longer than most commands.
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def svg_text(figure: Figure) -> str:
    """The figure as an ``<svg>`` element, the same text for the same figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def on_page(svg: str, alt: str) -> Markup:
    """The element for a page that holds several.

    Names within it are made unique, it has the paper of the page, and ``alt`` says what it shows.
    """
    number = next(_numbers)
    svg = re.sub(r'id="([^"]+)"', rf'id="f{number}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#f{number}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#f{number}-\1"', svg)
    svg = re.sub(r'(-patch_1">\s*<path [^>]*style=")fill: #ffffff', r"\1fill: none", svg, count=1)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1))


def plain_axes(axes: Axes, grid: str = "y") -> None:
    """Without a box, with light lines behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e5e7eb", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
