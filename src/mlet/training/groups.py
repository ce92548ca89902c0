"""Quality of a scored split within groups of rows, and on slices by the category of a field."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
            which are of many.
    """

    value: float
    interval: Interval
    groups: int
    rows: int
    no_group: int


def group_scores(scored: ScoredSplit, column: str, *, samples: int = 200) -> GroupScores:
    """GAUC by the group that the data set names, or by a one-valued field.

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
    ids = columns.ids[data.schema.one_valued.index(_field(data, column))]
    return np.where(ids == 0, -1, ids).astype(np.int32)


def check_columns(data: PreparedDataset, groups: Collection[str], slices: Collection[str]) -> None:
    """Refuse what a data set cannot be grouped or sliced by, before anything is scored.

    Raises:
        DataError: there is no group or field of a name, or it is multi-valued and to be a group.
    """
    fields = {entry.name: entry for entry in data.schema.fields}
    for name in (*groups, *slices):
        if name not in fields and not (name in groups and name == data.schema.group):
            group = f"the group {data.schema.group}, " if data.schema.group else ""
            raise DataError(
                f"{data.root}: no field {name!r} to score by; there are {group}{', '.join(fields)}"
            )
    for name in groups:
        if name != data.schema.group and fields[name].multi_valued:
            raise DataError(
                f"{data.root}: field {name!r} has several categories a row, and a row is in one "
                f"group; name a one-valued field"
            )


def _field(data: PreparedDataset, name: str) -> FieldSchema:
    return next(entry for entry in data.schema.fields if entry.name == name)


def category_slices(
    scored: ScoredSplit, field: str, *, samples: int = 200, most: int = MOST_SLICES
) -> list[SliceScores]:
    """The scores on the rows of each category of a field, those with most rows first.

    A row of a multi-valued field is in the slices of all its categories. Rows that are in none of
    the ``most`` slices are one more, `OTHERS`.

    Raises:
        DataError: no field of that name.
    """
    check_columns(scored.data, [], [field])
    entry = _field(scored.data, field)
    rows, ids = _values(scored, entry)
    counts = np.bincount(ids, minlength=entry.num_categories)
    largest = np.argsort(-counts, kind="stable")[:most]
    categories = scored.data.vocabulary(field)["category"]
    left, slices = np.ones(len(scored.labels), bool), []
    for category in largest[counts[largest] > 0].tolist():
        inside = np.zeros(len(scored.labels), bool)
        inside[rows[ids == category]] = True
        left &= ~inside
        name = UNKNOWN if category == 0 else categories[category] or MISSING
        slices.append(scored.scored(name, inside, samples))
    return [*slices, scored.scored(OTHERS, left, samples)] if left.any() else slices


def _values(
    scored: ScoredSplit, entry: FieldSchema
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The rows and the ids of a field's values, each id once a row."""
    schema, columns = scored.data.schema, scored.columns
    if not entry.multi_valued:
        return np.arange(len(columns)), columns.ids[schema.one_valued.index(entry)]
    values, offsets = columns.bags[entry.name]
    rows = np.repeat(np.arange(len(columns)), np.diff(offsets))
    pairs = np.unique(np.stack([rows, values], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1].astype(np.int32)
