"""Categories and rows by how often a category was seen in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlet.data.dataset import PreparedDataset

#: Training counts where a range begins.
DEFAULT_EDGES = (1, 10, 100, 1_000)

_DECILES = np.linspace(0.1, 0.9, 9)


@dataclass(frozen=True)
class CountRange:
    """Training counts from ``low`` to ``high``, both included; None is no end."""

    low: int
    high: int | None

    def __str__(self) -> str:
        """``3``, ``1-9`` or ``1000+``."""
        if self.high is None:
            return f"{self.low}+"
        return str(self.low) if self.high == self.low else f"{self.low}-{self.high}"

    def holds(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of some counts (N,) lie in it."""
        inside: npt.NDArray[np.bool_] = counts >= self.low
        return inside if self.high is None else inside & (counts <= self.high)


def count_ranges(edges: Sequence[int] = DEFAULT_EDGES) -> list[CountRange]:
    """The ranges that begin at increasing ``edges``; what is below the first is one too."""
    ends = [*(edge - 1 for edge in edges), None]
    return [CountRange(low, high) for low, high in zip((0, *edges), ends, strict=True)]


def group_by_count(
    counts: npt.NDArray[np.int64], edges: Sequence[int] = DEFAULT_EDGES
) -> tuple[tuple[str, ...], list[npt.NDArray[np.int64]]]:
    """Categories in ranges of their training count.

    Args:
        counts: (n,).
        edges: as of `count_ranges`.

    Returns:
        The ranges' names and members; ranges without a category are left out.
    """
    members = {str(part): np.flatnonzero(part.holds(counts)) for part in count_ranges(edges)}
    members = {name: found for name, found in members.items() if len(found)}
    return tuple(members), list(members.values())


@dataclass(frozen=True)
class Slice:
    """Some rows of the test split.

    Attributes:
        name: the range of training counts.
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
        span = CountRange(int(counts[rows].min()), int(counts[rows].max()))
        slices.append(Slice(str(span), float(np.median(counts[rows])), rows))
    return slices
