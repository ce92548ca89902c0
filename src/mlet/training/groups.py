"""Quality of a scored split within groups of rows, and on slices by what a column holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data import PreparedDataset
from mlet.data.schema import FieldSchema
from mlet.errors import DataError
from mlet.metrics import Interval, group_aucs
from mlet.training.evaluate import ScoredSplit, SliceScores

#: Categories that have a slice of their own: those with most rows.
MOST_SLICES = 20
#: Names of slices that are no category's.
UNKNOWN, MISSING, OTHERS = "(unknown or rare)", "(missing)", "(others)"


@dataclass(frozen=True)
class GroupScores:
    """AUC within groups, averaged by their impressions (`mlet.metrics.GroupAUCs`).

    Attributes:
        value: GAUC; NaN where no group has both labels.
        interval: of it, from a bootstrap over groups.
        groups, rows: with both labels, and the rows of those.
        no_group: rows that belong to no group: of a field those of unknown and rare categories,
            which are of many; else those in which the column is missing.
    """

    value: float
    interval: Interval
    groups: int
    rows: int
    no_group: int


def group_scores(scored: ScoredSplit, column: str, *, samples: int = 200) -> GroupScores:
    """GAUC by the group that the data set names, a one-valued field, or a column that is kept.

    Raises:
        DataError: there is neither of that name.
    """
    check_columns(scored.data, [column], [])
    groups = _groups(scored, column)
    found = group_aucs(scored.labels, scored.predictions, groups, scored.columns.weights)
    return GroupScores(
        found.mean,
        found.interval(samples=samples),
        len(found.aucs),
        found.rows,
        int((groups < 0).sum()),
    )


def _groups(scored: ScoredSplit, column: str) -> npt.NDArray[np.int32]:
    """The group of every row (N,), -1 for none."""
    data, columns = scored.data, scored.columns
    if column == data.schema.group and columns.groups is not None:
        return columns.groups
    if column in data.schema.kept:
        return data.kept(scored.split, column)
    ids = columns.ids[data.schema.one_valued.index(_field(data, column))]
    return np.where(ids == 0, -1, ids).astype(np.int32)


def check_columns(data: PreparedDataset, groups: Collection[str], slices: Collection[str]) -> None:
    """Refuse what a data set cannot be grouped or sliced by, before anything is scored.

    Raises:
        DataError: there is no group, field or kept column of a name, or it is multi-valued and to
            be a group.
    """
    fields = {entry.name: entry for entry in data.schema.fields}
    known = [*fields, *data.schema.kept]
    for name in (*groups, *slices):
        if name not in known and not (name in groups and name == data.schema.group):
            group = f"the group {data.schema.group}, " if data.schema.group else ""
            raise DataError(
                f"{data.root}: no field {name!r} to score by; there are {group}{', '.join(known)}; "
                f"other columns of a table are, once its schema says so (keep: [{name}])"
            )
    for name in groups:
        if name in fields and name != data.schema.group and fields[name].multi_valued:
            raise DataError(
                f"{data.root}: field {name!r} has several categories a row, and a row is in one "
                f"group; name a one-valued field"
            )


def _field(data: PreparedDataset, name: str) -> FieldSchema:
    return next(entry for entry in data.schema.fields if entry.name == name)


def category_slices(
    scored: ScoredSplit, column: str, *, samples: int = 200, most: int = MOST_SLICES
) -> list[SliceScores]:
    """The scores on the rows of each value of a field or a kept column, those with most rows first.

    A row of a multi-valued field is in the slices of all its categories. Rows that are in none of
    the ``most`` slices are one more, `OTHERS`.

    Raises:
        DataError: there is neither of that name.
    """
    check_columns(scored.data, [], [column])
    rows, ids, names = _values(scored, column)
    counts = np.bincount(ids, minlength=len(names))
    largest = np.argsort(-counts, kind="stable")[:most]
    left, slices = np.ones(len(scored.labels), bool), []
    for value in largest[counts[largest] > 0].tolist():
        inside = np.zeros(len(scored.labels), bool)
        inside[rows[ids == value]] = True
        left &= ~inside
        slices.append(scored.scored(names[value] or MISSING, inside, samples))
    return [*slices, scored.scored(OTHERS, left, samples)] if left.any() else slices


def _values(
    scored: ScoredSplit, column: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], pl.Series]:
    """The rows and the numbers of a column's values, each once a row, and the names of numbers."""
    data, columns = scored.data, scored.columns
    every = np.arange(len(columns))
    if column in data.schema.kept:
        # No value has the number 0.
        return every, np.maximum(data.kept(scored.split, column), 0), data.kept_values(column)
    entry = _field(data, column)
    names = data.vocabulary(column)["category"].fill_null(UNKNOWN)
    if not entry.multi_valued:
        return every, columns.ids[data.schema.one_valued.index(entry)], names
    values, offsets = columns.bags[column]
    rows = np.repeat(every, np.diff(offsets))
    pairs = np.unique(np.stack([rows, values], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1].astype(np.int32), names
