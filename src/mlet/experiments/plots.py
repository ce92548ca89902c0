"""Figures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlet.experiments.results import Comparison, Rows
from mlet.plotting import MARKERS, MLET_COLOURS, SLT_COLOUR, figure_style, plain_axes, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def auc_curves(comparison: Comparison) -> str:
    """Test AUC against dimension for SLT and each k, on all and on rare rows: SVG text.

    Points are means over seeds, bands their 95 % t-intervals.
    """
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = figure.subplots(1, 2)
        test_rows = comparison.schema.splits["test"].rows
        auc_panel(panels[0], comparison, "test", f"All test rows ({test_rows:,})")
        rare = (
            f"Rows with a category seen under {comparison.rare_below} times "
            f"({comparison.rare_rows:,})"
        )
        auc_panel(panels[1], comparison, "rare", rare)
        panels[0].legend(frameon=False, loc="lower right")
        return svg_text(figure)


def auc_panel(axes: Axes, comparison: Comparison, rows: Rows, title: str) -> None:
    """Draw AUC against dimension into ``axes``: means over seeds and their 95 % t-intervals."""
    dims = [arm.dim for arm in comparison.curve(None)]
    for place, inner_dim in enumerate([None, *comparison.inner_dims]):
        arms = comparison.curve(inner_dim)
        points = [arm.estimate(rows, "auc") for arm in arms]
        colour = SLT_COLOUR if inner_dim is None else MLET_COLOURS[(place - 1) % 5]
        axes.plot(
            dims,
            [point.mean for point in points],
            color=colour,
            linestyle="--" if inner_dim is None else "-",
            linewidth=2,
            marker=MARKERS[place % 5],
            markersize=6,
            label="single-layer (SLT)" if inner_dim is None else f"MLET, k = {inner_dim}",
        )
        if all(point.margin is not None for point in points):
            axes.fill_between(
                dims,
                [point.mean - (point.margin or 0) for point in points],
                [min(point.mean + (point.margin or 0), 1.0) for point in points],
                color=colour,
                alpha=0.13,
                linewidth=0,
            )
    dimension_axis(axes, dims)
    axes.set_xlabel("embedding dimension d (served size)")
    axes.set_ylabel("AUC")
    axes.set_title(title, fontsize=11)
    plain_axes(axes)


def dimension_axis(axes: Axes, dims: Sequence[int]) -> None:
    """An x axis of embedding dimensions: logarithmic, with a tick at each."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(dims)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
