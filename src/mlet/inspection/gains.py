"""Who gains: test row loss (logloss) per category, one model against another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlet.data import PreparedDataset
from mlet.data.frequency import group_by_count


@dataclass(frozen=True)
class CategoryGains:
    """One field's categories, as the test split shows them; means are weighted, if its rows are.

    Attributes:
        counts: training rows of each category that occurs in the test split, with a weight.
        rows: its test rows.
        gains: mean row loss of the baseline less that of the model on them; positive is better.
        groups: names of the training-count groups that occur.
        group_rows: test rows of each group.
        group_gains: mean gain over a group's test rows.
        group_margins: half-widths of 95 % intervals (normal, over categories' totals as clusters).
    """

    counts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    gains: npt.NDArray[np.float64]
    groups: tuple[str, ...]
    group_rows: tuple[int, ...]
    group_gains: tuple[float, ...]
    group_margins: tuple[float, ...]


def category_gains(
    data: PreparedDataset,
    baseline: npt.NDArray[np.float64],
    model: npt.NDArray[np.float64],
) -> dict[str, CategoryGains]:
    """Gains per category of every one-valued field.

    Args:
        data: whose test split the predictions are for.
        baseline, model: (N,) the loss of each row with both models.
    """
    difference = baseline - model
    columns = data.split("test")
    weights = None if columns.weights is None else columns.weights.astype(np.float64)
    result = {}
    for entry, ids in zip(data.schema.one_valued, columns.ids, strict=True):
        n = entry.num_categories
        rows = np.bincount(ids, minlength=n)
        masses = rows if weights is None else np.bincount(ids, weights=weights, minlength=n)
        weighted = difference if weights is None else difference * weights
        totals = np.bincount(ids, weights=weighted, minlength=n).astype(np.float64)
        seen = np.flatnonzero(masses)
        result[entry.name] = _gains(
            data.training_counts[entry.name][seen], rows[seen], totals[seen], masses[seen]
        )
    return result


def _gains(
    counts: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    totals: npt.NDArray[np.float64],
    masses: npt.NDArray[np.int64] | npt.NDArray[np.float64] | None = None,
) -> CategoryGains:
    """Of categories with so many test rows, whose differences, and weights, have these sums."""
    masses = rows if masses is None else masses
    names, groups = group_by_count(counts)
    means, margins, sizes = [], [], []
    for members in groups:
        size = masses[members].sum()
        mean = float(totals[members].sum() / size)
        # Rows of one category are alike: it is categories that vary independently.
        residuals = totals[members] - mean * masses[members]
        clusters = len(members)
        spread = np.sqrt((residuals**2).sum() * clusters / max(clusters - 1, 1)) / size
        means.append(mean)
        margins.append(float(1.96 * spread) if clusters > 1 else float("nan"))
        sizes.append(int(rows[members].sum()))
    return CategoryGains(
        counts, rows, totals / masses, names, tuple(sizes), tuple(means), tuple(margins)
    )
