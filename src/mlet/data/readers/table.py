"""Any CSV, Parquet or JSON-lines files, described by a small YAML schema."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from mlet.data import parse
from mlet.data.bad_rows import BadRows, Sieve
from mlet.data.compressed import on_disk
from mlet.data.delimited import check_names, read_delimited
from mlet.data.files import RawFile, find_files, kind_of_file
from mlet.data.jsonl import read_jsonl
from mlet.data.readers.columns import TableColumns
from mlet.data.readers.table_notes import TableNotes
from mlet.data.readers.table_schema import SplitColumn, TableSchema
from mlet.data.schema import SPLITS, RawFormat, SplitName
from mlet.data.source import (
    GROUP,
    LABEL,
    LINE,
    SPLIT,
    TIME,
    WEIGHT,
    RawColumns,
    RawPart,
    RawRows,
    frames_of,
    kept,
    kept_column,
)
from mlet.data.texts import one_spelling, texts_of
from mlet.data.times import read_times
from mlet.errors import ConfigError, DataError
from mlet.reading import reading

__all__ = ["SplitColumn", "TableSchema", "TableSource"]

_PARQUET_ROWS = 500_000
#: Rows of a Parquet file that one worker reads.
_PART_ROWS = 4 * _PARQUET_ROWS
_WHOLE = RawPart(0)


class TableSource:
    """CSV (plain, .gz, .zst), Parquet or JSON-lines files with the columns of a `TableSchema`.

    Attributes:
        bad_rows: what was left out when the rows were last read; None where nothing may be.
        time_kind: what the times were, as `mlet.data.times.show_time` takes it, once read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        schema: TableSchema,
        *,
        given: Mapping[SplitName, Sequence[Path]] | None = None,
        skip_bad_rows: int = 0,
        as_written: Collection[str] = (),
    ) -> None:
        """Read ``paths``, or the files of each split.

        Args:
            paths: files, folders or patterns, as `mlet.data.files.find_files`; pooled.
            schema: which column is what.
            given: the same by split, instead of ``paths``; kept as they are.
            skip_bad_rows: rows that may be left out because they cannot be read.
            as_written: fields whose texts are not to be spelled as those of other files.

        Raises:
            ConfigError: the schema cannot be that of a table, or splits are given twice.
            DataError: a folder or pattern holds no files.
        """
        schema.check()
        if given and schema.split is not None:
            raise ConfigError(
                "schema: 'split' names a column, but the files are split already; leave it out"
            )
        named = [*paths, *(path for some in (given or {}).values() for path in some)]
        self._files: list[tuple[RawFile, int | None]] = [(f, None) for f in find_files(paths)]
        for split, some in (given or {}).items():
            self._files += [(file, SPLITS.index(split)) for file in find_files(some)]
        self.paths = tuple(file.path for file, _ in self._files)
        self.schema, self.skip_bad_rows = schema, skip_bad_rows
        self.format = RawFormat(name="table", table=schema.model_dump(mode="json"))
        self.bad_rows: BadRows | None = None
        self.time_kind: str | None = None
        dense = schema.dense
        self.columns = RawColumns(
            dense={name: column.scale for name, column in dense.items()},
            categorical=tuple(schema.categorical),
            multi_valued=tuple(schema.multi_valued),
            time=schema.time is not None,
            split=schema.split is not None or bool(given),
            indicated=tuple(name for name, column in dense.items() if column.missing_indicator),
            weight=schema.weight is not None,
            shares=schema.shares,
            group=schema.group,
            kept=tuple(schema.keep),
        )
        otherwise: Literal["time", "random"] = "time" if schema.time else "random"
        self.default_split: Literal["time", "random", "given"] = (
            "given" if self.columns.split else otherwise
        )
        self.description = f"table: {', '.join(path.name for path in named)}"
        self._table = TableColumns(schema, as_written)
        self._positive = _positive(schema)

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        return frames_of(self)

    def parts(self) -> list[RawPart]:
        """See `mlet.data.source.PartedSource`; Parquet files are several if they are long."""
        parts: list[RawPart] = []
        for place, (file, _) in enumerate(self._files):
            rows = _rows_of_parquet(file.path)
            if rows <= _PART_ROWS:
                parts.append(RawPart(place))
            else:
                parts += [RawPart(place, at, _PART_ROWS) for at in range(0, rows, _PART_ROWS)]
        return parts

    def notes(self) -> TableNotes:
        """See `mlet.data.source.PartedSource`."""
        notes = TableNotes(self.schema, len(self._files), self.skip_bad_rows)
        self.bad_rows = notes.bad_rows
        return notes

    def read(self, part: RawPart, notes: TableNotes) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.PartedSource`."""
        schema, (file, split) = self.schema, self._files[part.file]
        for raw in self._read(file, schema.names(), bad_rows=notes.bad_rows, part=part):
            check_names(file.path, raw.columns, schema.names())
            raw = self._table.without_nulls(raw, schema.names())
            notes.add_raw(raw, file.path)
            typed, kind = self._typed(raw, file.path, notes)
            if split is not None:
                given = pl.repeat(split, len(typed), dtype=pl.UInt8, eager=True)
                typed = typed.with_columns(given.alias(SPLIT))
            if kind is not None and len(typed):
                notes.add_times(kind, file.path, int(raw[LINE][0]))
            notes.rows = notes.rows or len(typed) > 0
            yield typed

    def finish(self, notes: TableNotes) -> None:
        """See `mlet.data.source.PartedSource`."""
        self.bad_rows = notes.bad_rows
        self.time_kind = notes.finish(self.description, self.schema)

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """See `mlet.data.source.RowSource`; of the schema's columns the features alone are read."""
        names, self.bad_rows = self.schema.features(), None
        for file, _ in self._files:
            for raw in self._read(file, names, keep):
                check_names(file.path, raw.columns, names)
                there = self._table.without_nulls(raw, names)
                text = self._table.texts(there, names, file.path)
                features = pl.DataFrame(self._table.features(there, text, file.path))
                yield RawRows(file.path, raw[LINE], features, kept(raw, keep, file.path))

    def _read(
        self,
        file: RawFile,
        names: Sequence[str],
        keep: Sequence[str] = (),
        *,
        bad_rows: BadRows | None = None,
        part: RawPart = _WHOLE,
    ) -> Iterator[pl.DataFrame]:
        """The frames of a part of one file, its partitions' columns among them; ``keep`` may be
        missing."""
        path, schema = file.path, self.schema
        if file.found and path.is_file() and path.stat().st_size == 0:
            return
        needed = list(dict.fromkeys([*names, *keep]))
        inside = [name for name in names if name not in file.partitions]
        kind = kind_of_file(path)
        if kind == "parquet":
            frames = _parquet(file, part)
        elif kind == "jsonl":
            keys = [name for name in needed if name not in file.partitions]
            bags = [name for name in schema.multi_valued if name in inside]
            frames = read_jsonl(path, keys, bags, bad_rows=bad_rows)
        else:
            frames = read_delimited(
                path, schema.separator_of(path), None, quoted=schema.quote == "double",
                bad_rows=bad_rows, required=inside,
            )  # fmt: skip
        for frame in frames:
            yield frame.with_columns(
                pl.lit(value, dtype=pl.String).alias(name)
                for name, value in file.partitions.items()
                if name in needed and name not in frame.columns
            )

    def _typed(
        self, raw: pl.DataFrame, path: Path, notes: TableNotes
    ) -> tuple[pl.DataFrame, str | None]:
        """The columns of a raw frame, and what its times are; notes the labels that are clicks."""
        schema, kind, clicks = self.schema, None, notes.clicks
        sieve = Sieve(notes.bad_rows, len(raw)) if notes.bad_rows else None
        text = self._table.texts(raw, schema.names(), path)
        columns = {LABEL: self._labels(text, path, clicks, sieve)}
        if schema.time is not None:
            stamp = raw[schema.time]
            columns[TIME], kind = read_times(stamp, text, path, schema.time_format, sieve)
        if schema.split is not None:
            places = schema.split.places()
            columns[SPLIT] = parse.splits(text, schema.split.column, places, path, sieve=sieve)
        if schema.weight is not None:
            columns[WEIGHT] = parse.weights(text, schema.weight, path, sieve=sieve)
        if schema.group is not None:
            columns[GROUP] = one_spelling(text[schema.group])
        columns |= {kept_column(name): one_spelling(text[name]) for name in schema.keep}
        columns |= self._table.features(raw, text, path, sieve)
        frame = pl.DataFrame(columns)
        return (frame if sieve is None else frame.filter(sieve.kept)), kind

    def _labels(
        self, text: pl.DataFrame, path: Path, clicks: set[str], sieve: Sieve | None
    ) -> pl.Series:
        name, threshold = self.schema.label, self.schema.threshold
        if threshold is not None:
            numbers = parse.numbers(text, name, path, required=True, sieve=sieve)
            at_least: pl.Series = (numbers >= threshold).cast(pl.UInt8)
            return at_least
        if not self._positive:
            return parse.labels(text, name, path, sieve=sieve)
        values = one_spelling(text[name].str.strip_chars())
        found: pl.Series = values.str.to_lowercase().is_in(self._positive).fill_null(False)
        clicks.update(values.filter(found).str.to_lowercase().unique())
        clicked: pl.Series = found.cast(pl.UInt8)
        return clicked


def _parquet(file: RawFile, part: RawPart) -> Iterator[pl.DataFrame]:
    path, remedy = file.path, "write the Parquet file again, or fetch it again"
    missing = "no such file"
    with on_disk(path) as copy, reading(copy, DataError, remedy, missing=missing, shown=path):
        # Its folders' names are read in `find_files`, the same for all kinds of files.
        lazy = pl.scan_parquet(copy, glob=False, hive_partitioning=False)
        total = lazy.select(pl.len()).collect().item()
        if total == 0 and not file.found:
            raise DataError(f"{path}: the file is empty")
        end = total if part.rows is None else min(total, part.first + part.rows)
        for start in range(part.first, end, _PARQUET_ROWS):
            frame = lazy.slice(start, min(_PARQUET_ROWS, end - start)).collect()
            rows = np.arange(start + 1, start + 1 + len(frame), dtype=np.uint64)
            yield frame.with_columns(pl.Series(LINE, rows))


def _rows_of_parquet(path: Path) -> int:
    """How many rows a file on disk has; 0 of one that is no Parquet, which is read as a whole."""
    if path.suffix != ".parquet" or not path.is_file():
        return 0
    with suppress(pl.exceptions.PolarsError, OSError):  # to be found when it is read
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
    return 0


def _positive(schema: TableSchema) -> list[str]:
    """What a label that is a click may be, in lower case; of YAML's true and yes, any such word."""
    values: list[str] = []
    for value in schema.positive or []:
        if isinstance(value, bool):
            values += parse.TRUE if value else parse.FALSE
        else:
            values += [text.lower() for text in texts_of([value])]
    return values
