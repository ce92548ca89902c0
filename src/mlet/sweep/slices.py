"""Test rows by how often their rarest category was seen in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlet.data import PreparedDataset

_DECILES = np.linspace(0.1, 0.9, 9)


@dataclass(frozen=True)
class Slice:
    """Some rows of the test split.

    Attributes:
        name: the range of training counts, as ``4–17``.
        middle: the median training count.
        rows: (N,) whether a row belongs to it.
    """

    name: str
    middle: float
    rows: npt.NDArray[np.bool_]


def training_count_deciles(data: PreparedDataset) -> list[Slice]:
    """The test rows in ten parts of rising training count of their rarest category.

    Rows of equal count stay together, so parts differ in size, and there may be fewer than ten.
    """
    counts = data.rarest_counts("test")
    edges = np.unique(np.quantile(counts, _DECILES, method="lower"))
    part = np.searchsorted(edges, counts, side="left")
    slices = []
    for number in np.unique(part):
        rows = part == number
        low, high = int(counts[rows].min()), int(counts[rows].max())
        name = f"{low:,}" if low == high else f"{low:,}–{high:,}"
        slices.append(Slice(name, float(np.median(counts[rows])), rows))
    return slices
