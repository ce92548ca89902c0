"""Bytes against quality: every model of a search, and the front of those worth having."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlet.reporting.plots import (
    MARKERS,
    MLET_COLOURS,
    SLT_COLOUR,
    figure_style,
    plain_axes,
    svg_text,
)
from mlet.reporting.text import human_bytes
from mlet.studies.shrink.points import Kind, front
from mlet.studies.shrink.result import ShrinkResult
from mlet.task import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES: dict[Kind, str] = {
    "slt": "reference arm",
    "single": "one layer",
    "two-layer": "two layers",
}
#: Of the best models found, this share sets the scale: there are far worse ones.
_SHOWN = 0.5


def pareto(result: ShrinkResult, metric: Metric) -> str:
    """A metric on validation against bytes of tables, every point and the front: SVG text."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with figure_style():
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        axes = figure.subplots()
        for place, (kind, name) in enumerate(_NAMES.items()):
            colour = SLT_COLOUR if kind == "slt" else MLET_COLOURS[place - 1]
            for quantized in (False, True):
                mine = [
                    p
                    for p in result.points
                    if p.kind == kind and (p.precision != "float32") == quantized
                ]
                axes.plot(
                    [p.bytes for p in mine],
                    [p.scores[metric.name] for p in mine],
                    linestyle="none",
                    marker=MARKERS[place],
                    markersize=4,
                    color=colour,
                    markerfacecolor="none" if not quantized else colour,
                    alpha=0.7,
                    label=f"{name}, {'quantized' if quantized else 'float32'}",
                )
        best = front(result.points, metric)
        axes.step(
            [p.bytes for p in best],
            [p.scores[metric.name] for p in best],
            where="post",
            color="#000000",
            linewidth=1.2,
            label="Pareto front",
        )
        _mark(axes, result, metric)
        _scale(axes, result, metric)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: human_bytes(int(size))))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bytes of the served tables")
        axes.set_ylabel(f"validation {metric.label}")
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        plain_axes(axes)
        return svg_text(figure)


def _mark(axes: Axes, result: ShrinkResult, metric: Metric) -> None:
    """The reference, what was chosen, and the least that was asked."""
    for choice, name, marker in (
        (result.reference, "the reference", "*"),
        (result.chosen, "chosen", "X"),
    ):
        axes.plot(
            [choice.point.bytes],
            [choice.point.scores[metric.name]],
            linestyle="none",
            marker=marker,
            markersize=11,
            color="#dc2626",
            label=name,
        )
    if result.bar is not None and metric == result.study.task.headline:
        axes.axhline(
            metric.quality(result.bar), color="#dc2626", linewidth=0.8, linestyle=":", label="asked"
        )


def _scale(axes: Axes, result: ShrinkResult, metric: Metric) -> None:
    values = sorted((p.scores[metric.name] for p in result.points), key=metric.quality)
    shown = [*values[int(len(values) * _SHOWN) :], result.chosen.point.scores[metric.name]]
    shown.append(result.reference.point.scores[metric.name])
    low, high = min(shown), max(shown)
    room = 0.08 * (high - low) + 1e-5
    axes.set_ylim(low - room, high + room)
