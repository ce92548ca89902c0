"""Columns of whatever type, from files or from memory, to those that every reader gives."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import polars as pl

from mlet.data import parse
from mlet.data.bad_rows import Sieve
from mlet.data.readers.table_schema import TableSchema
from mlet.data.source import LINE, dense_column, field_column
from mlet.data.texts import as_bags, as_text, one_spelling, one_spelling_in_bags, texts_of


class TableColumns:
    """What the raw columns of a `TableSchema` are to a model.

    Args:
        schema: which column is what.
        as_written: fields whose texts are categories as they are, not as `one_spelling` has them.
    """

    def __init__(self, schema: TableSchema, as_written: Collection[str] = ()) -> None:
        self._schema, self._as_written = schema, as_written
        self._missing = texts_of(schema.null_values)

    def without_nulls(self, raw: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
        """The frame with nothing in the named columns where a value stands for that."""
        if not self._missing:
            return raw
        columns = []
        for name in dict.fromkeys(names):
            column = raw[name]
            if column.dtype.is_nested():  # of lists, single values: `_bags`
                continue
            text = one_spelling(as_text(column, Path(name)).str.strip_chars())
            columns.append(column.set(text.is_in(self._missing).fill_null(False), None))
        return raw.with_columns(columns)

    def texts(self, raw: pl.DataFrame, names: Iterable[str], place: Path | str) -> pl.DataFrame:
        """`LINE` and the named columns as strings, but for lists where there may be some.

        Raises:
            DataError: a column holds what is no text.
        """
        bags = [name for name in self._schema.multi_valued if raw.schema[name].is_nested()]
        scalars = [name for name in dict.fromkeys(names) if name not in bags]
        return raw.select(LINE, *(as_text(raw[name], place) for name in scalars))

    def features(
        self, raw: pl.DataFrame, text: pl.DataFrame, place: Path | str, sieve: Sieve | None = None
    ) -> dict[str, pl.Series]:
        """The columns that a model takes, as `mlet.data.source.RawColumns` says.

        Args:
            raw: from `without_nulls`.
            text: from `texts`.
            place: where they are from, for errors.
            sieve: what may be left out.

        Raises:
            DataError: a value is not of its column's kind; names the line.
        """
        schema = self._schema
        columns = {
            dense_column(name): parse.numbers(text, name, place, sieve=sieve)
            for name in schema.dense
        }
        for name in schema.categorical:
            as_written = name in self._as_written
            columns[field_column(name)] = text[name] if as_written else one_spelling(text[name])
        for name in schema.multi_valued:
            columns[field_column(name)] = self._bags(raw, text, name, place)
        return columns

    def _bags(
        self, raw: pl.DataFrame, text: pl.DataFrame, name: str, place: Path | str
    ) -> pl.Series:
        if name in text.columns:
            bag = text[name].fill_null("").str.split(self._schema.multi_valued[name])
            bag = bag.list.eval(pl.element().filter(pl.element() != ""))
        else:
            bag = as_bags(raw[name], place)
        if name not in self._as_written:
            bag = one_spelling_in_bags(bag)
        if self._missing:
            bag = bag.list.eval(pl.element().filter(~pl.element().is_in(self._missing)))
        return bag
