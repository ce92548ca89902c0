"""Figures of a study, one small axes for each model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlet.reporting.plots import (
    MARKERS,
    MLET_COLOURS,
    SLT_COLOUR,
    figure_style,
    plain_axes,
    svg_text,
)
from mlet.reporting.text import human_bytes
from mlet.studies.categories import FrequencyCurve, frequency_curves
from mlet.studies.methods import SLT
from mlet.studies.results import Panel, Rows
from mlet.studies.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3

#: Of the heat map: a gain of this many half widths of its t-interval.
_FULL_COLOUR = 3.0


def curves(panels: Sequence[Panel]) -> str:
    """Test quality (AUC) against dimension for every model: SVG text."""

    def draw(axes: Axes, panel: Panel) -> None:
        _quality(axes, panel, "test", panel.model)
        ceiling = panel.schema.splits["test"].best.get(panel.task.headline.name)
        if ceiling is not None:
            axes.annotate(
                f"best possible: {ceiling:.4f}", (0.98, 0.03), xycoords="axes fraction",
                ha="right", fontsize=9, color=SLT_COLOUR,
            )  # fmt: skip

    return _small_multiples(panels, draw, legend=True)


def quality_curves(panel: Panel) -> str:
    """Test quality (AUC) against dimension for SLT and each k, on all and on rare rows: SVG text.

    Points are means over seeds, bands their 95 % t-intervals.
    """
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.subplots(1, 2)
        _quality(axes[0], panel, "test", f"All test rows ({panel.schema.splits['test'].rows:,})")
        rare = f"Rows with a category seen under {panel.rare_below} times ({panel.rare_rows:,})"
        _quality(axes[1], panel, "rare", rare)
        axes[0].legend(frameon=False, loc="lower right")
        return svg_text(figure)


def _quality(axes: Axes, panel: Panel, rows: Rows, title: str) -> None:
    """Draw the headline metric against dimension: means over seeds and their 95 % t-intervals."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    dims, headline = [arm.dim for arm in panel.curve(SLT)], panel.task.headline
    shown: list[Estimate] = []
    for place, method in enumerate((SLT, *panel.mlet_methods)):
        arms = panel.curve(method)
        points = [arm.estimate(rows, headline) for arm in arms]
        shown += points
        colour = SLT_COLOUR if method == SLT else MLET_COLOURS[(place - 1) % 5]
        axes.plot(
            [arm.dim for arm in arms],
            [point.mean for point in points],
            color=colour,
            linestyle="--" if method == SLT else "-",
            linewidth=2,
            marker=MARKERS[place % 5],
            markersize=6,
            label=method.label,
        )
        if all(point.margin is not None for point in points):
            axes.fill_between(
                [arm.dim for arm in arms],
                [point.mean - (point.margin or 0) for point in points],
                [min(point.mean + (point.margin or 0), headline.highest) for point in points],
                color=colour,
                alpha=0.13,
                linewidth=0,
            )
    axes.set_ylim(_limits(shown))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(dims))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel("embedding dimension d (served size)")
    axes.set_ylabel(headline.label)
    axes.set_title(title, fontsize=11)
    plain_axes(axes)


def _limits(points: Sequence[Estimate]) -> tuple[float, float]:
    """Of an axis with all means; bands of many times their spread, as of two seeds, run out."""
    points = [point for point in points if math.isfinite(point.mean)]
    if not points:
        return 0.0, 1.0
    means = [point.mean for point in points]
    spread = max(means) - min(means)
    margins = [point.margin or 0.0 for point in points]
    most = 2 * spread if spread else max(margins)
    low = min(mean - min(m, most) for mean, m in zip(means, margins, strict=True))
    high = max(mean + min(m, most) for mean, m in zip(means, margins, strict=True))
    pad = 0.06 * (high - low) or 0.01
    return low - pad, high + pad


def gain_maps(panels: Sequence[Panel]) -> str:
    """Gain over SLT in the headline metric, by d and k, for every model: SVG text.

    Coloured by the gain in units of its own noise, the half width of its t-interval: cells beyond
    one are outlined, full colour is three, and without an interval there is no colour.
    """
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.patches import Rectangle

    norm = TwoSlopeNorm(0.0, -_FULL_COLOUR, _FULL_COLOUR)

    def draw(axes: Axes, panel: Panel) -> None:
        dims = [arm.dim for arm in panel.curve(SLT)]
        inner = panel.mlet_methods
        cells = np.full((len(inner), len(dims)), np.nan)
        for arm in panel.mlet:
            place = inner.index(arm.method), dims.index(arm.dim)
            gain = panel.gain(arm)
            cells[place] = in_noise(gain)
            dark = abs(cells[place]) > 0.6 * _FULL_COLOUR
            axes.text(
                place[1], place[0], f"{1e3 * gain.mean:+.1f}", ha="center", va="center",
                fontsize=9, color="white" if dark else "#111827",
            )  # fmt: skip
            if panel.outcome(arm) != "unclear":
                axes.add_patch(
                    Rectangle((place[1] - 0.46, place[0] - 0.46), 0.92, 0.92, fill=False, lw=1.5)
                )
        edges = [np.arange(len(ticks) + 1) - 0.5 for ticks in (dims, inner)]
        axes.pcolormesh(
            *edges, panel.task.headline.quality(cells), cmap="RdBu", norm=norm, zorder=0
        )
        axes.set_xticks(range(len(dims)), [str(dim) for dim in dims])
        axes.set_yticks(range(len(inner)), [str(method.changes["inner_dim"]) for method in inner])
        axes.set_xlabel("embedding dimension d")
        axes.set_ylabel("inner dimension k")
        axes.set_title(panel.model, fontsize=11)
        axes.spines[:].set_visible(False)

    return _small_multiples(panels, draw, height=2.4)


def in_noise(gain: Estimate) -> float:
    """A gain in half widths of its interval, at most what has full colour; 0 without one."""
    if gain.margin is None or gain.mean == 0 or math.isnan(gain.mean):
        return 0.0
    if gain.margin == 0:
        return math.copysign(_FULL_COLOUR, gain.mean)
    return min(max(gain.mean / gain.margin, -_FULL_COLOUR), _FULL_COLOUR)


def gains_by_count(panels: Sequence[Panel]) -> str:
    """Gain in row loss (logloss) over SLT against the training count of a row's rarest category.

    Means over dimensions, each k a line: SVG text.
    """

    def draw(axes: Axes, panel: Panel) -> None:
        names = [part.name for part in panel.slices]
        loss = panel.task.measures.index(panel.task.row_loss)
        axes.axhline(0, color=SLT_COLOUR, linewidth=1)
        for place, method in enumerate(panel.mlet_methods):
            gains = []
            for arm in panel.curve(method):
                slt = panel.slt(arm.dim)
                if slt is not None:
                    gains.append((slt.slices - arm.slices)[:, :, loss])
            mean = np.concatenate(gains).mean(axis=0)
            axes.plot(
                range(len(names)), mean, color=MLET_COLOURS[place % 5],
                marker=MARKERS[(place + 1) % 5], markersize=5, label=method.label,
            )  # fmt: skip
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axes.set_xlabel("training count of the rarest category")
        axes.set_ylabel(f"{panel.task.row_loss.label}, SLT − MLET")
        axes.set_title(panel.model, fontsize=11)
        plain_axes(axes)

    return _small_multiples(panels, draw, legend=True, height=3.4)


def category_losses(panels: Sequence[Panel], dim: int) -> str:
    """Row loss (logloss) of a category against its training count, in the largest field: SVG."""

    def draw(axes: Axes, panel: Panel) -> None:
        found = frequency_curves(panel, dim)
        for place, curve in enumerate(found):
            colour = SLT_COLOUR if place == 0 else MLET_COLOURS[(place - 1) % 5]
            _losses(axes, curve, colour, MARKERS[place % 5], "--" if place == 0 else "-")
        axes.set_ylabel(f"mean {panel.task.row_loss.label} of a category")
        axes.set_title(f"{panel.model}: field {found[0].field}", fontsize=11)

    return _small_multiples(panels, draw, legend=True, height=3.4)


def _losses(axes: Axes, curve: FrequencyCurve, colour: str, marker: str, style: str) -> None:
    axes.plot(
        range(len(curve.counts)), curve.losses, style, color=colour, marker=marker, markersize=5,
        label=curve.label,
    )  # fmt: skip
    axes.set_xticks(range(len(curve.counts)), curve.counts, rotation=45, ha="right", fontsize=8)
    axes.set_xlabel("training count of the category")
    plain_axes(axes)


def pareto(panel: Panel) -> str:
    """Test quality (AUC) against the served model's bytes, SLT, MLET and all peers: SVG text."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with figure_style():
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        axes = figure.subplots()
        methods = []
        for arm in panel.arms:
            if arm.method not in methods:
                methods.append(arm.method)
        palette = (SLT_COLOUR, *MLET_COLOURS, "#0891b2", "#ca8a04", "#be185d", "#4d7c0f", "#1e293b")
        for place, method in enumerate(methods):
            two_layer = any(arm.inner_dim is not None for arm in panel.curve(method))
            arms = sorted(panel.curve(method), key=lambda arm: arm.model_bytes)
            estimates = [arm.estimate("test", panel.task.headline) for arm in arms]
            axes.errorbar(
                [arm.model_bytes for arm in arms],
                [estimate.mean for estimate in estimates],
                [estimate.margin or 0.0 for estimate in estimates],
                color=palette[place % len(palette)],
                linestyle="--" if method == SLT else "-" if two_layer else ":",
                linewidth=1.2 if method.kind == "peer" else 2,
                elinewidth=0.5,
                marker=MARKERS[place % 5],
                markersize=5,
                label="SLT" if method == SLT else method.name,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: human_bytes(int(size))))
        # The bars of sixteen methods would set the scale otherwise.
        means = [arm.estimate("test", panel.task.headline).mean for arm in panel.arms]
        room = 0.15 * (max(means) - min(means)) + 1e-4
        axes.set_ylim(min(means) - room, max(means) + room)
        axes.set_xlabel("size of the served model")
        axes.set_ylabel(f"test {panel.task.headline.label}")
        axes.set_title(panel.title, fontsize=11)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        plain_axes(axes)
        return svg_text(figure)


def _small_multiples(
    panels: Sequence[Panel],
    draw: Callable[[Axes, Panel], None],
    *,
    legend: bool = False,
    height: float = 3.0,
) -> str:
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with figure_style():
        # At least two columns wide: a page scales figures to its own width, letters with them.
        width = 3.9 * max(columns, 2)
        figure = Figure(figsize=(width, height * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, panel in zip(grid, panels, strict=False):
            draw(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        if legend:
            handles, labels = grid[0].get_legend_handles_labels()
            figure.legend(
                handles, labels, frameon=False, loc="outside upper center", ncols=len(labels),
                fontsize=10,
            )  # fmt: skip
        return svg_text(figure)
