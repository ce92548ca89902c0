"""Any CSV or Parquet file, described by a small YAML schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from mlet.data import parse
from mlet.data.delimited import LINE, read_delimited
from mlet.data.source import LABEL, TIME, DenseScale, RawColumns, dense_column, field_column
from mlet.errors import ConfigError, DataError
from mlet.settings import Settings

_PARQUET_ROWS = 500_000


class TableSchema(Settings):
    """Which column is what. Columns not named are left out.

    Attributes:
        label: column of 0 and 1.
        dense: numeric columns; a list (all log-scaled, as DLRM does) or name → ``log``/``none``.
        categorical: columns with one category a row.
        multi_valued: columns with a bag of categories: name → the separator between them in a
            CSV cell (ignored for Parquet list columns).
        time: column to split by: integers, or dates in ISO form.
        separator: between the columns of a CSV file.
    """

    label: str
    dense: list[str] | dict[str, DenseScale] = Field(default_factory=list)
    categorical: list[str] = Field(default_factory=list)
    multi_valued: dict[str, str] = Field(default_factory=dict)
    time: str | None = None
    separator: str = ","

    def names(self) -> list[str]:
        """Every column the schema refers to."""
        time = [self.time] if self.time else []
        return [self.label, *self.dense, *self.categorical, *self.multi_valued, *time]


class TableSource:
    """CSV (plain, .gz, .zst) or Parquet files with the columns of a `TableSchema`."""

    def __init__(self, paths: Sequence[Path], schema: TableSchema) -> None:
        """``paths``: one file or several with the same columns.

        Raises:
            ConfigError: the schema names a column twice or has no categorical one.
        """
        names = schema.names()
        repeated = sorted({name for name in names if names.count(name) > 1 and name != schema.time})
        if repeated:
            raise ConfigError(f"schema: column {repeated[0]!r} is given two roles")
        if not schema.categorical and not schema.multi_valued:
            raise ConfigError("schema: name at least one categorical or multi_valued column")
        if len(schema.separator) != 1:
            raise ConfigError("schema: 'separator' must be one character")
        self.paths, self.schema = tuple(paths), schema
        dense = schema.dense
        self.columns = RawColumns(
            dense=dict(dense) if isinstance(dense, dict) else dict.fromkeys(dense, "log"),
            categorical=tuple(schema.categorical),
            multi_valued=tuple(schema.multi_valued),
            time=schema.time is not None,
        )
        self.default_split: Literal["time", "random"] = "time" if schema.time else "random"
        self.description = f"table: {', '.join(path.name for path in self.paths)}"

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        for path in self.paths:
            for raw in self._read(path):
                missing = [name for name in self.schema.names() if name not in raw.columns]
                if missing:
                    found = [name for name in raw.columns if name != LINE]
                    raise DataError(
                        f"{path}: no column {missing[0]!r}; the file has {', '.join(found)}"
                    )
                yield self._typed(raw, path)

    def _read(self, path: Path) -> Iterator[pl.DataFrame]:
        if path.suffix != ".parquet":
            yield from read_delimited(path, self.schema.separator, None, quoted=True)
            return
        if not path.exists():
            raise DataError(f"{path}: no such file")
        try:
            lazy = pl.scan_parquet(path)
            total = lazy.select(pl.len()).collect().item()
            for start in range(0, total, _PARQUET_ROWS):
                frame = lazy.slice(start, _PARQUET_ROWS).collect()
                rows = np.arange(start + 1, start + 1 + len(frame), dtype=np.uint64)
                yield frame.with_columns(pl.Series(LINE, rows))
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{path}: not a readable Parquet file ({error})") from None
        if total == 0:
            raise DataError(f"{path}: the file is empty")

    def _typed(self, raw: pl.DataFrame, path: Path) -> pl.DataFrame:
        schema = self.schema
        scalars = [name for name in schema.names() if not isinstance(raw.schema[name], pl.List)]
        stamp = raw[schema.time] if schema.time else None
        raw = raw.with_columns(pl.col(name).cast(pl.String) for name in scalars)
        columns = {LABEL: parse.labels(raw, schema.label, path)}
        if stamp is not None and schema.time is not None:
            columns[TIME] = _time(raw, stamp, schema.time, path)
        for name in self.columns.dense:
            columns[dense_column(name)] = parse.numbers(raw, name, path)
        for name in schema.categorical:
            columns[field_column(name)] = raw[name]
        for name, separator in schema.multi_valued.items():
            bag = raw[name]
            if bag.dtype == pl.String:
                bag = bag.fill_null("").str.split(separator)
                bag = bag.list.eval(pl.element().filter(pl.element() != ""))
            columns[field_column(name)] = bag.cast(pl.List(pl.String)).fill_null([])
        return pl.DataFrame(columns)


def _time(raw: pl.DataFrame, stamp: pl.Series, name: str, path: Path) -> pl.Series:
    """Time as Int64: dates as microseconds, integers as they are."""
    if stamp.dtype.is_temporal():
        instants: pl.Series = stamp.cast(pl.Datetime("us")).cast(pl.Int64)
        return instants
    text = raw[name].str.strip_chars()
    dates = text.str.to_datetime(time_unit="us", strict=False) if _looks_dated(text) else None
    if dates is None:
        return parse.integers(raw, name, path, required=True)
    if dates.null_count():
        row = raw.filter(dates.is_null()).row(0, named=True)
        raise DataError(f"{path}, line {row[LINE]}: {name!r} holds {row[name]!r}, expected a date")
    microseconds: pl.Series = dates.cast(pl.Int64)
    return microseconds


def _looks_dated(text: pl.Series) -> bool:
    return bool(text.cast(pl.Int64, strict=False).is_null().all() and text.str.contains("-").any())
