"""The first rows of a file of any kind, and how a text file is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Literal

import polars as pl

from mlet.data.bad_rows import BadRows
from mlet.data.compressed import on_disk
from mlet.data.delimited import SEPARATORS, is_number, read_delimited
from mlet.data.files import FileKind, find_files, kind_of_file
from mlet.data.jsonl import read_jsonl
from mlet.data.source import LINE
from mlet.errors import DataError
from mlet.reading import reading

#: Bytes of text and rows of Parquet that are looked at.
_BYTES, _ROWS = 4 * 1024 * 1024, 100_000
#: Rows that are left out of the sample before it is no table.
_BAD_ROWS = 1_000

_QUOTES: tuple[Literal["double", "none"], ...] = ("double", "none")


@dataclass(frozen=True)
class Sample:
    """The first rows of a file.

    Attributes:
        path: the file.
        kind: what it is.
        rows: its columns; those of text files are strings.
        separator, quote: as of a schema, of a CSV file.
        bad_rows: what could not be read; None of Parquet.
    """

    path: Path
    kind: FileKind
    rows: pl.DataFrame
    separator: str = ","
    quote: Literal["double", "none"] = "double"
    bad_rows: BadRows | None = None


def read_sample(path: Path) -> Sample:
    """The first rows of a file, or of the first file in a folder or of a pattern.

    Raises:
        DataError: it cannot be read, or has no line with the names of its columns.
    """
    file = find_files([path])[0]
    kind = kind_of_file(file.path)
    if kind == "parquet":
        remedy = "write the Parquet file again, or fetch it again"
        with on_disk(file.path) as copy, reading(copy, DataError, remedy, shown=file.path):
            lazy = pl.scan_parquet(copy, glob=False, hive_partitioning=False)
            sample = Sample(file.path, kind, lazy.head(_ROWS).collect())
    elif kind == "jsonl":
        bad_rows = BadRows(_BAD_ROWS)
        sample = Sample(file.path, kind, _json_rows(file.path, bad_rows), bad_rows=bad_rows)
    else:
        sample = _delimited(file.path)
    if not len(sample.rows):
        raise DataError(f"{file.path}: no rows to guess from")
    added = [
        pl.lit(value, dtype=pl.String).alias(name)
        for name, value in file.partitions.items()
        if name not in sample.rows.columns
    ]
    rows = sample.rows.with_columns(added).drop(LINE, strict=False)
    return replace(sample, rows=rows)


def _json_rows(path: Path, bad_rows: BadRows) -> pl.DataFrame:
    """The columns of a file of JSON objects: the keys of its first thousand lines."""
    lines = next(
        read_delimited(
            path, "\x1f", ("row",), quoted=False, block_bytes=_BYTES, bad_rows=BadRows(_BAD_ROWS)
        )
    )
    columns: dict[str, bool] = {}
    for text in islice(lines["row"], 1_000):
        try:
            row = json.loads(text)
        except ValueError:
            continue  # what is wrong with it is said below
        for key, value in row.items() if isinstance(row, dict) else ():
            if isinstance(value, dict):
                continue  # what no column of a table can hold
            columns[key] = columns.get(key, False) or isinstance(value, list)
    bags = [key for key, listed in columns.items() if listed]
    return next(read_jsonl(path, list(columns), bags, block_bytes=_BYTES, bad_rows=bad_rows))


def _delimited(path: Path) -> Sample:
    """The reading that gives most columns."""
    found: list[Sample] = []
    problems: list[DataError] = []
    for separator, quote in product(SEPARATORS, _QUOTES):
        bad_rows = BadRows(_BAD_ROWS)
        frames = read_delimited(
            path, separator, None, quoted=quote == "double", block_bytes=_BYTES, bad_rows=bad_rows
        )
        try:
            rows = next(frames, None)
        except DataError as error:
            problems.append(error)
            continue
        if rows is None and not bad_rows.total:
            raise DataError(f"{path}: no rows to guess from")
        if rows is not None and bad_rows.total * 10 <= len(rows):
            found.append(Sample(path, "text", rows, separator, quote, bad_rows))
    if not found:
        raise problems[0] if problems else _no_separator(path)
    # Of equal ones the first: the one with quotes, unless more rows are bad with it.
    best = max(found, key=lambda s: (s.rows.width, -s.bad_rows.total if s.bad_rows else 0))
    names = [name for name in best.rows.columns if name != LINE]
    if len(names) < 2:
        raise problems[0] if problems else _no_separator(path)
    numbers = [name for name in names if name == "" or is_number(name)]
    if numbers:
        raise DataError(
            f"{path}, line 1: {numbers[0]!r} is no name of a column; put a line with the names "
            f"before the rows"
        )
    return best


def _no_separator(path: Path) -> DataError:
    return DataError(
        f"{path}: no separator (of comma, tab, semicolon, bar) gives the same number of columns in "
        f"all lines; mend the file, or write the schema by hand (docs/data.md)"
    )
