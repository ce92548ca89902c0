"""Rows to what a model takes: ids by the vocabularies, dense features scaled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data.dataset import SplitColumns
from mlet.data.scaling import scaled_dense
from mlet.data.schema import DatasetSchema
from mlet.data.source import RawRows, dense_column, field_column
from mlet.data.vocabulary import Vocabulary
from mlet.errors import DataError


def explode(bags: pl.Series) -> pl.Series:
    """All values of all bags; empty bags leave nothing behind (``explode`` would leave a null)."""
    values: pl.Series = bags.filter(bags.list.len() > 0).explode()
    return values


class Encoder:
    """Encodes rows as the data set was whose schema and vocabularies these are.

    Args:
        schema: its fields and dense features.
        vocabularies: of every field, by name.
    """

    def __init__(self, schema: DatasetSchema, vocabularies: Mapping[str, Vocabulary]) -> None:
        self._schema, self._vocabularies = schema, vocabularies

    def check(self, rows: RawRows) -> pl.DataFrame:
        """The columns to encode.

        Raises:
            DataError: one is not there, or a value that was never missing in training is.
        """
        names = [dense_column(feature.name) for feature in self._schema.raw_dense]
        names += [field_column(field.name) for field in self._schema.fields]
        for name in names:
            if name not in rows.features.columns:
                found = [one.split(":", 1)[1] for one in rows.features.columns if ":" in one]
                raise DataError(
                    f"{rows.place}: rows without {name.split(':', 1)[1]!r}, which the model was "
                    f"trained on; they have {', '.join(found)}: name their format with --format"
                )
        for feature in self._schema.raw_dense:
            missing = rows.features[dense_column(feature.name)].is_null()
            if feature.missing_in_training is False and missing.any():
                line = rows.lines.filter(missing)[0]
                raise DataError(
                    f"{rows.place}, line {line}: dense feature {feature.name!r} is missing or NaN, "
                    f"which it never was in training; fill it in, or train on data where it is"
                )
        return rows.features.select(names)

    def encode(self, features: pl.DataFrame) -> SplitColumns:
        """The columns of N rows, without labels.

        Raises:
            DataError: a dense value is too large for float32.
        """
        bags = {}
        for field in self._schema.multi_valued:
            column = features[field_column(field.name)]
            lengths = column.list.len().to_numpy()
            offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            bags[field.name] = (self._ids(field.name, explode(column)), offsets)
        return SplitColumns(
            labels={},
            dense=scaled_dense(features, self._schema.dense),
            ids=tuple(
                self._ids(field.name, features[field_column(field.name)])
                for field in self._schema.one_valued
            ),
            bags=bags,
        )

    def _ids(self, field: str, categories: pl.Series) -> npt.NDArray[np.int32]:
        return self._vocabularies[field].encode(categories)
