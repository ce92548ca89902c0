"""Iso-quality reduction with an interval, per arm, model and study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mlet.experiments.iso_quality import IsoQuality, iso_quality
from mlet.sweep.results import Panel, StudyArm

_ORDER = {"below": 0, "exact": 1, "above": 2}


@dataclass(frozen=True)
class Reduction:
    """The single-layer dimension whose AUC an MLET model of dimension d reaches, divided by d.

    Attributes:
        point: of the means over seeds.
        low, high: ends of the 95 % interval over resampled seeds and test rows; bounds of their own
            where the single-layer curve is not reached.
    """

    point: IsoQuality
    low: IsoQuality
    high: IsoQuality

    def __str__(self) -> str:
        """As in a table: ``3.4× (1.2× to > 8×)``."""
        return f"{self.point} ({self.low} to {self.high})"


@lru_cache(maxsize=10_000)  # asked for by every table and figure
def reduction(panel: Panel, arm: StudyArm) -> Reduction:
    """Of one MLET arm, by test AUC.

    Seeds are resampled (the same ones for all arms: they share batches) together with test rows,
    and the reduction is read off each resampled single-layer curve. Nothing is extrapolated.
    """
    curve = panel.curve("slt")
    seeds, samples = arm.resamples.shape[:2]
    drawn = np.random.default_rng(0).integers(seeds, size=(samples, seeds))
    rows = np.arange(samples)[:, None]

    def resampled(member: StudyArm) -> np.ndarray:
        means: np.ndarray = member.resamples[drawn, rows, 0].mean(axis=1)
        return means

    singles = {member.arm.dim: resampled(member) for member in curve}
    quality = resampled(arm)
    found = sorted(
        (
            iso_quality({dim: values[i] for dim, values in singles.items()}, arm.arm.dim, auc)
            for i, auc in enumerate(quality)
        ),
        key=lambda one: (_ORDER[one.kind], one.reduction),
    )
    tail = int(0.025 * samples)
    means = {member.arm.dim: member.result.estimate("test", "auc").mean for member in curve}
    point = iso_quality(means, arm.arm.dim, arm.result.estimate("test", "auc").mean)
    return Reduction(point, found[tail], found[-1 - tail])


def mean_reduction(reductions: Sequence[IsoQuality]) -> str:
    """Their geometric mean, as text that says which bounds are in it.

    A bound counts as its number: with "above" bounds the mean is at least what is given (``≥``),
    with "below" ones at most (``≤``), with both it is between unknown limits (``~``).
    """
    if not reductions:
        return "–"
    kinds = {one.kind for one in reductions} - {"exact"}
    sign = {"": "", "above": "≥ ", "below": "≤ "}.get("".join(kinds), "~ ")
    mean = math.exp(sum(math.log(one.reduction) for one in reductions) / len(reductions))
    return f"{sign}{mean:.2g}×"


def largest_reduction(reductions: Sequence[IsoQuality]) -> str:
    """The largest, as text."""
    return str(max(reductions, key=lambda one: one.reduction)) if reductions else "–"
