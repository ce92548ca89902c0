"""A model that scores raw rows: categories as they are called, not ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data.delimited import check_names
from mlet.data.encoding import Encoder
from mlet.data.readers.columns import TableColumns
from mlet.data.readers.rows import table_of
from mlet.data.source import LINE, RawRows
from mlet.data.vocabulary import Vocabulary
from mlet.errors import DataError, RunError
from mlet.export import CollapsedModel
from mlet.reading import first_line
from mlet.scoring.frames import frame_of, series
from mlet.training.load import load_served
from mlet.training.predict import served_scores


class Predictor:
    """Scores rows as ``mlet evaluate`` does, to the bit; made by `load`.

    Attributes:
        schema: what the model was trained on.
        columns: what a row must have, by name: its dense features and its fields.
        as_written: fields whose categories are told apart however they are written.
    """

    def __init__(self, found: CollapsedModel, place: Path) -> None:
        """``found``: of the file, or the run, ``place``."""
        if found.vocabularies is None:
            raise RunError(
                f"{place}: holds no vocabularies, as models of earlier versions of mlet, so it "
                f"cannot score raw rows; write it again with mlet collapse RUN --out FILE"
            )
        self.model, self.schema = found.model, found.schema
        own = {
            field.name: Vocabulary(found.vocabularies[field.name], field.total_categories)
            for field in self.schema.vocabulary_fields
        }
        vocabularies = {field.name: own[field.owner] for field in self.schema.fields}
        self.encoder = Encoder(self.schema, vocabularies)
        self.as_written = frozenset(
            name for name, known in vocabularies.items() if known.is_as_written
        )
        table = table_of(self.schema)
        self._table = TableColumns(table, self.as_written)
        self.columns = tuple(table.features())

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """The model of a finished run, or of a file that ``mlet collapse`` wrote.

        Raises:
            RunError: it cannot be read, is damaged or unfinished, or is of an earlier version.
        """
        return cls(load_served(Path(path)), Path(path))

    @overload
    def predict(self, rows: Mapping[str, Any]) -> float: ...

    @overload
    def predict(self, rows: Any) -> npt.NDArray[np.float64]: ...

    def predict(self, rows: Any) -> float | npt.NDArray[np.float64]:
        """Score one row, or a table of them.

        Args:
            rows: a row as a mapping, of a multi-valued field a list of categories; or a Polars or
                pandas data frame, an Arrow table, or whatever has Arrow's ``__arrow_c_stream__``.
                Columns that the model does not know are left alone; None and NaN are missing.

        Returns:
            The prediction of a row; those of a table (N,), in its order.

        Raises:
            DataError: a column is missing, or a value is not of its column's kind.
        """
        if isinstance(rows, Mapping):
            return float(self._score(self._row(rows), "the row")[0])
        return self._score(frame_of(rows, self.columns), "the table")

    def _row(self, row: Mapping[str, Any]) -> pl.DataFrame:
        values = {}
        for name in self.columns:
            if name not in row:
                raise DataError(
                    f"the row has no {name!r}, which the model was trained on; give it, None where "
                    f"it is missing"
                )
            value = row[name]
            if isinstance(value, (set, frozenset, tuple)):
                value = list(value)
            try:
                values[name] = series(name, [value])
            except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
                raise DataError(
                    f"the row's {name!r} is a {type(value).__name__} that is no number, text or "
                    f"list of them ({first_line(error)})"
                ) from None
        return pl.DataFrame(values)

    def _score(self, raw: pl.DataFrame, place: str) -> npt.NDArray[np.float64]:
        check_names(place, raw.columns, self.columns, what="table")
        lines = pl.Series(LINE, np.arange(1, len(raw) + 1, dtype=np.uint64))
        raw = self._table.without_nulls(raw.with_columns(lines), self.columns)
        text = self._table.texts(raw, self.columns, place)
        features = self._table.features(raw, text, place)
        rows = RawRows(place, lines, pl.DataFrame(features), pl.DataFrame())
        return self.score(self.encoder.check(rows))

    def score(self, features: pl.DataFrame) -> npt.NDArray[np.float64]:
        """Predictions (N,) of rows as a reader gives them, checked by `encoder`."""
        return served_scores(self.model, self.encoder.encode(features))
