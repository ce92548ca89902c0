"""Iso-quality reduction with an interval, per arm, model and study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mlet.metrics import percentile_interval
from mlet.studies.iso_quality import IsoQuality, iso_quality
from mlet.studies.methods import SLT
from mlet.studies.results import ArmResult, Floats, Panel, Rows

#: Of an arm that is single-layer training.
_SAME = IsoQuality(1.0, "exact")

_ORDER = {"below": 0, "exact": 1, "above": 2}

#: Seeds below which there is no interval: of two, a quarter of the resamples are one seed twice.
_MIN_SEEDS = 3


@dataclass(frozen=True)
class Reduction:
    """The single-layer dimension whose quality an MLET model of dimension d reaches, divided by d.

    Attributes:
        point: of the means over seeds.
        interval: ends of the 95 % interval over resampled seeds and test rows; bounds of their own
            where the single-layer curve is not reached. None of fewer than three seeds.
    """

    point: IsoQuality
    interval: tuple[IsoQuality, IsoQuality] | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values; ``low`` and ``high`` are None without an interval."""
        low, high = map(asdict, self.interval) if self.interval else (None, None)
        return {"point": asdict(self.point), "low": low, "high": high}

    def __str__(self) -> str:
        """As in a table: ``3.4× (1.2× to > 8×)``."""
        if self.interval is None:
            return str(self.point)
        return f"{self.point} ({self.interval[0]} to {self.interval[1]})"


@lru_cache(maxsize=10_000)  # asked for by every table and figure
def reduction(panel: Panel, arm: ArmResult) -> Reduction | None:
    """Of one arm, by the headline metric on the test split; None where that is undefined."""
    found = sorted(
        resampled_reductions(panel, arm), key=lambda one: (_ORDER[one.kind], one.reduction)
    )
    tail = int(0.025 * len(found))
    point = mean_quality_reduction(panel, arm)
    if point is None or not found:
        return None
    enough = len(arm.resamples) >= _MIN_SEEDS
    return Reduction(point, (found[tail], found[-1 - tail]) if enough else None)


def mean_quality_reduction(panel: Panel, arm: ArmResult, rows: Rows = "test") -> IsoQuality | None:
    """The reduction by means alone; None where one is undefined."""
    metric = panel.task.headline

    def quality_of(member: ArmResult) -> float:
        return metric.quality(member.estimate(rows, metric).mean)

    if _is_single_layer(panel, arm):
        return _SAME
    curve = {slt.dim: quality_of(slt) for slt in panel.curve(SLT)}
    quality = quality_of(arm)
    if any(math.isnan(value) for value in (*curve.values(), quality)):
        return None
    return iso_quality(curve, arm.dim, quality)


@lru_cache(maxsize=10_000)
def resampled_reductions(panel: Panel, arm: ArmResult) -> tuple[IsoQuality, ...]:
    """An arm's reduction in each resample of seeds and test rows.

    Seeds are resampled (the same ones for all arms: they share batches) together with test rows,
    and the reduction is read off each resampled single-layer curve. Nothing is extrapolated.
    """
    seeds, samples = map(int, arm.resamples.shape[:2])
    if _is_single_layer(panel, arm):
        return (_SAME,) * samples
    drawn = np.random.default_rng(0).integers(seeds, size=(samples, seeds))
    rows = np.arange(samples)[:, None]

    def resampled(member: ArmResult) -> Floats:
        means: Floats = member.resamples[drawn, rows, 0].mean(axis=1)
        return panel.task.headline.quality(means)

    singles = {member.dim: resampled(member) for member in panel.curve(SLT)}
    return tuple(
        iso_quality({dim: values[i] for dim, values in singles.items()}, arm.dim, value)
        for i, value in enumerate(resampled(arm))
        if not math.isnan(value)  # a resample without clicks, which is one for all arms
    )


def _is_single_layer(panel: Panel, arm: ArmResult) -> bool:
    """Whether an arm is SLT of its own dimension, number for number.

    ``inner_dim: auto`` may leave all tables ordinary. A curve that falls somewhere would give such
    an arm less than the width it has.
    """
    slt = panel.slt(arm.dim)
    return slt is not None and np.array_equal(slt.resamples, arm.resamples, equal_nan=True)


def mean_reduction(pairs: Sequence[tuple[Panel, ArmResult]]) -> str:
    """The geometric mean over arms with its 95 % interval, as text that tells bounds in it.

    A bound counts as its number: with "above" bounds the mean is at least what is given (``≥``),
    with "below" ones at most (``≤``), with both it is between unknown limits (``~``). Of bounds
    alone there is no mean. The interval is that of the same mean over resamples, seeds and rows
    drawn for all arms together; there is none of fewer than three seeds.
    """
    points = points_of(pairs)
    if not points:
        return "–"
    if only_bounds(points):
        return "bounds only"
    mean = f"{_sign(points)}{mean_of(points):.2g}×"
    if min(len(arm.resamples) for _, arm in pairs) < _MIN_SEEDS:
        return mean
    logs = [
        [math.log(one.reduction) for one in resampled_reductions(panel, arm)]
        for panel, arm in pairs
    ]
    low, high = percentile_interval(np.exp(np.mean(logs, axis=0)))
    return f"{mean} ({low:.2g} to {high:.2g})"


def mean_of(reductions: Sequence[IsoQuality]) -> float:
    """The geometric mean of one or more; a bound counts as its number."""
    return math.exp(sum(math.log(one.reduction) for one in reductions) / len(reductions))


def only_bounds(reductions: Sequence[IsoQuality]) -> bool:
    """Whether the single-layer curve reaches none of the arms' qualities: nothing was measured."""
    return all(one.kind != "exact" for one in reductions)


def _sign(reductions: Sequence[IsoQuality]) -> str:
    kinds = {one.kind for one in reductions} - {"exact"}
    return {"": "", "above": "≥ ", "below": "≤ "}.get("".join(kinds), "~ ")


def points_of(pairs: Sequence[tuple[Panel, ArmResult]]) -> list[IsoQuality]:
    """The reductions of arms by mean quality, where that is defined."""
    found = (mean_quality_reduction(panel, arm) for panel, arm in pairs)
    return [point for point in found if point is not None]


def largest_reduction(reductions: Sequence[IsoQuality]) -> str:
    """The largest, as text."""
    return str(max(reductions, key=lambda one: one.reduction)) if reductions else "–"
