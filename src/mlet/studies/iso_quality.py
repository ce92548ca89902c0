"""Iso-quality reduction: how much wider an ordinary table must be to be as good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class IsoQuality:
    """The SLT dimension whose quality an MLET model of dimension d reaches, divided by d.

    Attributes:
        reduction: the ratio; a bound where the SLT curve does not reach that quality.
        kind: ``exact``; ``above``: even the widest SLT model is worse, the reduction is above the
            given ratio, by how much is not known; ``below``: even the narrowest one is better.
    """

    reduction: float
    kind: Literal["exact", "above", "below"]

    def __str__(self) -> str:
        """As in a table: ``3.4×``, ``> 8×`` or ``< 0.5×``."""
        sign = {"exact": "", "above": "> ", "below": "< "}[self.kind]
        return f"{sign}{self.reduction:.3g}×"


def iso_quality(slt: Mapping[int, float], dim: int, quality: float) -> IsoQuality:
    """Read the reduction off the SLT curve (higher quality is better).

    At each dimension the curve is the best quality of that dimension and all smaller ones, since
    nobody would take a wider table for less; between dimensions it is linear in log d. The
    smallest dimension that reaches the quality counts. Nothing is extrapolated.

    Args:
        slt: mean quality of the single-layer models by dimension.
        dim: dimension d of the two-layer model.
        quality: its mean quality.

    Raises:
        ValueError: the SLT curve is empty.
    """
    if not slt:
        raise ValueError("no single-layer results to compare with")
    dims = np.array(sorted(slt), np.float64)
    logs = np.log2(dims)
    curve = np.maximum.accumulate([slt[int(d)] for d in dims])
    if quality > curve[-1]:
        return IsoQuality(float(dims[-1] / dim), "above")
    if quality < curve[0]:
        return IsoQuality(float(dims[0] / dim), "below")
    right = int(np.argmax(curve >= quality))
    if right == 0:
        return IsoQuality(float(dims[0] / dim), "exact")
    share = (quality - curve[right - 1]) / (curve[right] - curve[right - 1])
    reached = 2 ** (logs[right - 1] + share * (logs[right] - logs[right - 1]))
    return IsoQuality(float(reached / dim), "exact")
