"""What is noticed of a table's files one after another, and said of all of them at the end."""

from __future__ import annotations

import warnings
from pathlib import Path

import polars as pl

from mlet.data.bad_rows import BadRows
from mlet.data.kinds import SameKinds
from mlet.data.readers.table_schema import TableSchema
from mlet.data.texts import texts_of
from mlet.data.times import OneKind
from mlet.errors import DataError


class TableNotes:
    """See `mlet.data.source.Notes`.

    Args:
        schema: of the table.
        files: how many there are; of several, columns are compared.
        skip_bad_rows: rows that may be left out.

    Attributes:
        bad_rows: what was left out; None where nothing may be.
        clicks: labels that were taken for clicks.
        rows: whether there were any.
    """

    def __init__(self, schema: TableSchema, files: int, skip_bad_rows: int) -> None:
        self.bad_rows = BadRows(skip_bad_rows) if skip_bad_rows else None
        self.clicks: set[str] = set()
        self.rows = False
        fields = (*schema.categorical, *schema.multi_valued)
        self._kinds = SameKinds(fields if files > 1 else ())
        self._times = OneKind(schema.time or "")
        self._each_time: list[tuple[str, Path, int]] = []

    def add_raw(self, frame: pl.DataFrame, path: Path) -> None:
        """Notice what the columns of some rows hold."""
        self._kinds.add(frame, path)

    def add_times(self, kind: str, path: Path, line: int) -> None:
        """Notice of what kind the times from a line on are.

        Raises:
            DataError: of another than before.
        """
        self._each_time.append((kind, path, line))
        self._times.add(kind, path, line)

    def add(self, later: TableNotes) -> None:
        """See `mlet.data.source.Notes`."""
        for one in later._each_time:
            self.add_times(*one)
        if self.bad_rows is not None and later.bad_rows is not None:
            self.bad_rows.add(later.bad_rows)
        self._kinds.add_all(later._kinds)
        self.clicks |= later.clicks
        self.rows = self.rows or later.rows

    def finish(self, description: str, schema: TableSchema) -> str | None:
        """Warn of what is odd; returns the kind of all times.

        Raises:
            DataError: no row can be read, or times are of several kinds.
        """
        if not self.rows and self.bad_rows is not None and self.bad_rows.total:
            first = next(iter(self.bad_rows.first.values()))
            raise DataError(f"{description}: no row can be read; {first}")
        kind = self._times.finish()
        self._kinds.warn()
        words = [value for value in schema.positive or [] if not isinstance(value, bool)]
        for value, text in zip(words, texts_of(words), strict=True):
            if text.lower() not in self.clicks:
                what = f"label {schema.label!r}: no row holds the positive value {value!r}"
                warnings.warn(what, stacklevel=2)
        return kind
