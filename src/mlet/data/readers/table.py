"""Any CSV, Parquet or JSON-lines files, described by a small YAML schema."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from mlet.data import parse
from mlet.data.bad_rows import BadRows, Sieve
from mlet.data.delimited import LINE, check_names, read_delimited
from mlet.data.files import RawFile, find_files, kind_of_file
from mlet.data.jsonl import read_jsonl
from mlet.data.kinds import SameKinds
from mlet.data.readers.table_schema import SplitColumn, TableSchema
from mlet.data.schema import SPLITS, SplitName
from mlet.data.source import LABEL, SPLIT, TIME, RawColumns, dense_column, field_column
from mlet.data.texts import as_bags, as_text, one_spelling, one_spelling_in_bags, texts_of
from mlet.data.times import OneKind, read_times
from mlet.errors import ConfigError, DataError
from mlet.reading import reading

__all__ = ["SplitColumn", "TableSchema", "TableSource"]

_PARQUET_ROWS = 500_000


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
    ) -> None:
        """Read ``paths``, or the files of each split.

        Args:
            paths: files, folders or patterns, as `mlet.data.files.find_files`; pooled.
            schema: which column is what.
            given: the same by split, instead of ``paths``; kept as they are.
            skip_bad_rows: rows that may be left out because they cannot be read.

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
        )
        otherwise: Literal["time", "random"] = "time" if schema.time else "random"
        self.default_split: Literal["time", "random", "given"] = (
            "given" if self.columns.split else otherwise
        )
        self.description = f"table: {', '.join(path.name for path in named)}"
        self._missing = texts_of(schema.null_values)
        self._positive = _positive(schema)

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        schema = self.schema
        self.bad_rows = BadRows(self.skip_bad_rows) if self.skip_bad_rows else None
        times, clicks = OneKind(schema.time or ""), set[str]()
        fields = (*schema.categorical, *schema.multi_valued)
        kinds = SameKinds(fields if len(self._files) > 1 else ())
        for file, split in self._files:
            for raw in self._read(file):
                check_names(file.path, raw.columns, schema.names())
                raw = self._without_nulls(raw)
                kinds.add(raw, file.path)
                typed, kind = self._typed(raw, file.path, clicks)
                if split is not None:
                    given = pl.repeat(split, len(typed), dtype=pl.UInt8, eager=True)
                    typed = typed.with_columns(given.alias(SPLIT))
                if kind is not None and len(typed):
                    times.add(kind, file.path, int(raw[LINE][0]))
                yield typed
        self.time_kind = times.finish()
        kinds.warn()
        words = [value for value in schema.positive or [] if not isinstance(value, bool)]
        for value, text in zip(words, texts_of(words), strict=True):
            if text.lower() not in clicks:
                what = f"label {schema.label!r}: no row holds the positive value {value!r}"
                warnings.warn(what, stacklevel=2)

    def _read(self, file: RawFile) -> Iterator[pl.DataFrame]:
        """The frames of one file, its partitions' columns among them."""
        path, schema = file.path, self.schema
        if file.found and path.is_file() and path.stat().st_size == 0:
            return
        needed = list(dict.fromkeys(schema.names()))
        inside = [name for name in needed if name not in file.partitions]
        kind = kind_of_file(path)
        if kind == "parquet":
            frames = self._parquet(file)
        elif kind == "jsonl":
            bags = [name for name in schema.multi_valued if name in inside]
            frames = read_jsonl(path, inside, bags, bad_rows=self.bad_rows)
        else:
            frames = read_delimited(
                path, schema.separator, None, quoted=schema.quote == "double",
                bad_rows=self.bad_rows, required=inside,
            )  # fmt: skip
        for frame in frames:
            yield frame.with_columns(
                pl.lit(value, dtype=pl.String).alias(name)
                for name, value in file.partitions.items()
                if name in needed and name not in frame.columns
            )

    def _parquet(self, file: RawFile) -> Iterator[pl.DataFrame]:
        path, remedy = file.path, "write the Parquet file again, or fetch it again"
        with reading(path, DataError, remedy, missing="no such file"):
            # Its folders' names are read in `find_files`, the same for all kinds of files.
            lazy = pl.scan_parquet(path, glob=False, hive_partitioning=False)
            total = lazy.select(pl.len()).collect().item()
            if total == 0 and not file.found:
                raise DataError(f"{path}: the file is empty")
            for start in range(0, total, _PARQUET_ROWS):
                frame = lazy.slice(start, _PARQUET_ROWS).collect()
                rows = np.arange(start + 1, start + 1 + len(frame), dtype=np.uint64)
                yield frame.with_columns(pl.Series(LINE, rows))

    def _without_nulls(self, raw: pl.DataFrame) -> pl.DataFrame:
        """The frame with nothing where a value stands for that."""
        if not self._missing:
            return raw
        columns = []
        for name in dict.fromkeys(self.schema.names()):
            column = raw[name]
            if column.dtype.is_nested():  # of lists, single values: `_bags`
                continue
            text = one_spelling(as_text(column, Path(name)).str.strip_chars())
            columns.append(column.set(text.is_in(self._missing).fill_null(False), None))
        return raw.with_columns(columns)

    def _typed(
        self, raw: pl.DataFrame, path: Path, clicks: set[str]
    ) -> tuple[pl.DataFrame, str | None]:
        """The columns of a raw frame, and what its times are; notes the labels that are clicks."""
        schema, kind = self.schema, None
        sieve = Sieve(self.bad_rows, len(raw)) if self.bad_rows else None
        text = raw.select(LINE, *(as_text(raw[name], path) for name in self._scalars(raw)))
        columns = {LABEL: self._labels(text, path, clicks, sieve)}
        if schema.time is not None:
            stamp = raw[schema.time]
            columns[TIME], kind = read_times(stamp, text, path, schema.time_format, sieve)
        if schema.split is not None:
            places = schema.split.places()
            columns[SPLIT] = parse.splits(text, schema.split.column, places, path, sieve=sieve)
        for name in self.columns.dense:
            columns[dense_column(name)] = parse.numbers(text, name, path, sieve=sieve)
        for name in schema.categorical:
            columns[field_column(name)] = one_spelling(text[name])
        for name, separator in schema.multi_valued.items():
            columns[field_column(name)] = self._bags(raw, text, name, separator, path)
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

    def _bags(
        self, raw: pl.DataFrame, text: pl.DataFrame, name: str, separator: str, path: Path
    ) -> pl.Series:
        if name in text.columns:
            bag = text[name].fill_null("").str.split(separator)
            bag = bag.list.eval(pl.element().filter(pl.element() != ""))
        else:
            bag = as_bags(raw[name], path)
        bag = one_spelling_in_bags(bag)
        if self._missing:
            bag = bag.list.eval(pl.element().filter(~pl.element().is_in(self._missing)))
        return bag

    def _scalars(self, raw: pl.DataFrame) -> list[str]:
        """The columns the schema names, but for lists where there may be some."""
        bags = [name for name in self.schema.multi_valued if raw.schema[name].is_nested()]
        return [name for name in dict.fromkeys(self.schema.names()) if name not in bags]


def _positive(schema: TableSchema) -> list[str]:
    """What a label that is a click may be, in lower case; of YAML's true and yes, any such word."""
    values: list[str] = []
    for value in schema.positive or []:
        if isinstance(value, bool):
            values += parse.TRUE if value else parse.FALSE
        else:
            values += [text.lower() for text in texts_of([value])]
    return values
