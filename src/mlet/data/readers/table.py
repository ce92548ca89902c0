"""Any CSV or Parquet file, described by a small YAML schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator
from typing_extensions import Self

from mlet.data import parse
from mlet.data.delimited import read_delimited
from mlet.data.raw_bytes import is_parquet, on_disk
from mlet.data.readers.columns import as_text, require, typed_features
from mlet.data.schema import SPLITS, RawFormat
from mlet.data.source import LABEL, LINE, SPLIT, TIME, DenseScale, RawColumns, RawRows, kept
from mlet.errors import ConfigError, DataError
from mlet.reading import reading
from mlet.settings import Settings

_PARQUET_ROWS = 500_000
#: Year, month, day, and perhaps the time of the day.
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}(?:$|[T ])"


class SplitColumn(Settings):
    """A column that says of every row which split it is in.

    Attributes:
        column: its name.
        train, valid, test: its values, without regard to case.
    """

    column: str
    train: list[int | str] = Field(default=[0, "train"], min_length=1)
    valid: list[int | str] = Field(default=[1, "valid", "validation"], min_length=1)
    test: list[int | str] = Field(default=[2, "test"], min_length=1)

    @model_validator(mode="after")
    def _one_split_a_value(self) -> Self:
        for value in self.places():
            if sum(value in self._texts(split) for split in SPLITS) > 1:
                raise ValueError(f"{value!r} is listed for two splits")
        return self

    def places(self) -> dict[str, int]:
        """The place of a split among the three, by value."""
        return {text: place for place, split in enumerate(SPLITS) for text in self._texts(split)}

    def _texts(self, split: str) -> list[str]:
        return [str(value).strip().lower() for value in getattr(self, split)]


class TableSchema(Settings):
    """Which column is what. Columns not named are left out.

    Attributes:
        label: column of 0 and 1.
        dense: numeric columns; a list (all log-scaled, as DLRM does) or name → ``log``/``none``.
        categorical: columns with one category a row.
        multi_valued: columns with a bag of categories: name → the separator between them in a
            CSV cell (ignored for Parquet list columns).
        time: column to split by: integers, or dates in ISO form.
        split: the column of rows that are split already; see `SplitColumn`.
        separator: between the columns of a CSV file; of one named .tsv it is a tab.
        quote: ``double``, where cells of a CSV file may be enclosed in double quotes (RFC 4180), or
            ``none``, where quotes are characters like others, as in many logs.
    """

    label: str
    dense: list[str] | dict[str, DenseScale] = Field(default_factory=list)
    categorical: list[str] = Field(default_factory=list)
    multi_valued: dict[str, str] = Field(default_factory=dict)
    time: str | None = None
    split: SplitColumn | None = None
    separator: str = ","
    quote: Literal["double", "none"] = "double"

    def names(self) -> list[str]:
        """Every column the schema refers to."""
        time = [self.time] if self.time else []
        split = [self.split.column] if self.split else []
        return [self.label, *self.dense, *self.categorical, *self.multi_valued, *time, *split]


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
        if len(schema.separator.encode()) != 1 or schema.separator in '"\r\n':
            raise ConfigError(
                f"schema: 'separator' must be one ASCII character, and neither a quote nor an end "
                f"of line; got {schema.separator!r}"
            )
        if LINE in names:
            raise ConfigError(
                f"schema: {LINE!r} is a name that mlet uses itself; rename the column"
            )
        self.paths, self.schema = tuple(paths), schema
        self.format = RawFormat(name="table", table=schema.model_dump(mode="json"))
        dense = schema.dense
        self.columns = RawColumns(
            dense=dict(dense) if isinstance(dense, dict) else dict.fromkeys(dense, "log"),
            categorical=tuple(schema.categorical),
            multi_valued=tuple(schema.multi_valued),
            time=schema.time is not None,
            split=schema.split is not None,
        )
        otherwise: Literal["time", "random"] = "time" if schema.time else "random"
        self.default_split: Literal["time", "random", "given"] = (
            "given" if schema.split else otherwise
        )
        self.description = f"table: {', '.join(path.name for path in self.paths)}"

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        unit: str | None = None
        for path in self.paths:
            for raw in self._read(path):
                require(self.schema.names(), raw, path)
                typed, found_unit = self._typed(raw, path)
                if unit not in (None, found_unit):
                    raise DataError(
                        f"{path}, line {raw[LINE][0]}: column {self.schema.time!r} holds "
                        f"{found_unit}, further up or in earlier files {unit}"
                    )
                unit = found_unit
                yield typed

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """See `mlet.data.source.RowSource`; of the schema's columns the features alone are read."""
        schema = self.schema
        for path in self.paths:
            for raw in self._read(path):
                require([*schema.dense, *schema.categorical, *schema.multi_valued], raw, path)
                features = pl.DataFrame(self._features(raw, path))
                yield RawRows(path, raw[LINE], features, kept(raw, keep, path))

    def _read(self, path: Path) -> Iterator[pl.DataFrame]:
        if not is_parquet(path):
            quoted = self.schema.quote == "double"
            separator = "\t" if ".tsv" in path.suffixes else self.schema.separator
            yield from read_delimited(path, separator, None, quoted=quoted)
            return
        remedy = "write the Parquet file again, or fetch it again"
        with on_disk(path) as file, reading(file, DataError, remedy, missing="no such file"):
            lazy = pl.scan_parquet(file, glob=False)
            total = lazy.select(pl.len()).collect().item()
            if total == 0:
                raise DataError(f"{path}: the file is empty")
            for start in range(0, total, _PARQUET_ROWS):
                frame = lazy.slice(start, _PARQUET_ROWS).collect()
                rows = np.arange(start + 1, start + 1 + len(frame), dtype=np.uint64)
                yield frame.with_columns(pl.Series(LINE, rows))

    def _typed(self, raw: pl.DataFrame, path: Path) -> tuple[pl.DataFrame, str | None]:
        """The columns of a raw frame, and what its times are."""
        schema, unit = self.schema, None
        split = schema.split
        others = [schema.label, schema.time, split and split.column]
        names = dict.fromkeys(name for name in others if name)
        text = raw.select(LINE, *(as_text(raw[name], path) for name in names))
        columns = {LABEL: parse.labels(text, schema.label, path)}
        if schema.time is not None:
            columns[TIME], unit = _time(raw[schema.time], text, path)
        if split is not None:
            columns[SPLIT] = parse.splits(text, split.column, split.places(), path)
        return pl.DataFrame(columns | self._features(raw, path)), unit

    def _features(self, raw: pl.DataFrame, path: Path) -> dict[str, pl.Series]:
        columns = self.columns
        return typed_features(
            raw,
            path,
            dense=list(columns.dense),
            categorical=columns.categorical,
            multi_valued=self.schema.multi_valued,
        )


def _time(stamp: pl.Series, text: pl.DataFrame, path: Path) -> tuple[pl.Series, str]:
    """Time as Int64, dates as microseconds, integers as they are; and which they were.

    Raises:
        DataError: a time is missing, or neither.
    """
    name = stamp.name
    if stamp.dtype in (pl.Date, pl.Datetime):
        parse.refuse_first(text, stamp.is_null(), name, path, "a date")
        return stamp.cast(pl.Datetime("us")).cast(pl.Int64), "dates"
    strings = text[name].str.strip_chars()
    if not _looks_dated(strings):
        return parse.integers(text, name, path, required=True), "integers"
    # Polars guesses, and takes 01-02-2024 for the first of February.
    strings = strings.set(~strings.str.contains(_ISO_DATE).fill_null(False), None)
    try:
        dates = strings.str.to_datetime(time_unit="us", strict=False)
    except pl.exceptions.PolarsError:  # it knows none of the formats
        dates = pl.Series([None] * len(strings), dtype=pl.Datetime("us"))
    parse.refuse_first(text, dates.is_null(), name, path, "a date in ISO form")
    return dates.cast(pl.Int64), "dates"


def _looks_dated(text: pl.Series) -> bool:
    return bool(text.cast(pl.Int64, strict=False).is_null().all() and text.str.contains("-").any())
