"""What can be said of a data set before anything is trained: how sparse it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlet.data.dataset import PreparedDataset

#: A category with fewer training rows is rare.
RARE_BELOW = 10
#: Ranks that the Zipf exponent is read off, and the fewest that say anything.
_RANKS, _FEWEST = 50, 5


@dataclass(frozen=True)
class FieldProperties:
    """One categorical field.

    Attributes:
        name: of the field.
        categories: with an id of their own.
        zipf: exponent s of ``count ∝ rank^−s``; NaN where there are too few categories.
        once: share of the categories that occur in one training row.
        rare: share of the test values whose category has fewer training rows than `RARE_BELOW`,
            those never seen among them.
        unseen: share of the test values whose category training never saw.
    """

    name: str
    categories: int
    zipf: float
    once: float
    rare: float
    unseen: float


@dataclass(frozen=True)
class DatasetProperties:
    """A data set.

    Attributes:
        rows: of training, those of a data set that it extends included.
        rows_per_category: training rows for each category of all fields.
        rare_rows: share of the test rows in which a category is rare.
        unseen_rows: share of those in which one was never seen.
        fields: in the schema's order.
    """

    rows: int
    rows_per_category: float
    rare_rows: float
    unseen_rows: float
    fields: tuple[FieldProperties, ...]


def properties(data: PreparedDataset) -> DatasetProperties:
    """Measure a data set; the test rows' categories are read, not their labels."""
    counts = data.training_counts
    columns = data.split("test")
    one_valued = zip(data.schema.one_valued, columns.ids, strict=True)
    values = {field.name: ids for field, ids in one_valued}
    values |= {name: ids for name, (ids, _) in columns.bags.items()}
    fields = tuple(
        _field(field.name, counts[field.name], values[field.name]) for field in data.schema.fields
    )
    rows = data.schema.counted_rows
    rarest = data.rarest_counts("test")
    return DatasetProperties(
        rows=rows,
        rows_per_category=rows / max(1, _categories(data, fields)),
        rare_rows=_share(rarest < RARE_BELOW),
        unseen_rows=_share(rarest == 0),
        fields=fields,
    )


def _categories(data: PreparedDataset, fields: Iterable[FieldProperties]) -> int:
    """Of all vocabularies, each counted once."""
    own = {field.name for field in data.schema.vocabulary_fields}
    return sum(field.categories for field in fields if field.name in own)


def _field(name: str, counts: npt.NDArray[np.int64], ids: npt.NDArray[np.int32]) -> FieldProperties:
    seen = counts[counts > 0]
    of_values = counts[ids]
    return FieldProperties(
        name=name,
        categories=len(seen),
        zipf=zipf_exponent(seen),
        once=_share(seen == 1),
        rare=_share(of_values < RARE_BELOW),
        unseen=_share(of_values == 0),
    )


def _share(which: npt.NDArray[np.bool_]) -> float:
    return float(which.mean()) if len(which) else 0.0


def zipf_exponent(counts: npt.NDArray[np.int64]) -> float:
    """The exponent s of ``count ∝ rank^−s``, by least squares in logarithms.

    Ranks are evenly spaced in log scale, so that the many rare categories do not outweigh the
    others, and end where categories occur once, since counts below one are not seen.

    Args:
        counts: (n,) of the categories, in any order.
    """
    falling = np.sort(counts[counts > 1])[::-1]
    if len(falling) < _FEWEST:
        return float("nan")
    ranks = np.unique(np.geomspace(1, len(falling), _RANKS).round().astype(np.int64))
    slope = np.polyfit(np.log(ranks), np.log(falling[ranks - 1]), 1)[0]
    return float(-slope)
