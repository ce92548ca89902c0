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
from mlet.data.delimited import LINE, read_delimited
from mlet.data.schema import SPLITS
from mlet.data.source import LABEL, SPLIT, TIME, DenseScale, RawColumns, dense_column, field_column
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
        separator: between the columns of a CSV file.
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
                missing = [name for name in self.schema.names() if name not in raw.columns]
                if missing:
                    found = [name for name in raw.columns if name != LINE]
                    raise DataError(
                        f"{path}: no column {missing[0]!r}; the file has {', '.join(found)}"
                    )
                typed, found_unit = self._typed(raw, path)
                if unit not in (None, found_unit):
                    raise DataError(
                        f"{path}, line {raw[LINE][0]}: column {self.schema.time!r} holds "
                        f"{found_unit}, further up or in earlier files {unit}"
                    )
                unit = found_unit
                yield typed

    def _read(self, path: Path) -> Iterator[pl.DataFrame]:
        if path.suffix != ".parquet":
            quoted = self.schema.quote == "double"
            yield from read_delimited(path, self.schema.separator, None, quoted=quoted)
            return
        remedy = "write the Parquet file again, or fetch it again"
        with reading(path, DataError, remedy, missing="no such file"):
            lazy = pl.scan_parquet(path, glob=False)
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
        text = raw.select(LINE, *(_as_text(raw[name], path) for name in self._scalars(raw)))
        columns = {LABEL: parse.labels(text, schema.label, path)}
        if schema.time is not None:
            columns[TIME], unit = _time(raw[schema.time], text, path)
        if schema.split is not None:
            columns[SPLIT] = parse.splits(text, schema.split.column, schema.split.places(), path)
        for name in self.columns.dense:
            columns[dense_column(name)] = parse.numbers(text, name, path)
        for name in schema.categorical:
            columns[field_column(name)] = text[name]
        for name, separator in schema.multi_valued.items():
            if name in text.columns:
                bag = text[name].fill_null("").str.split(separator)
                bag = bag.list.eval(pl.element().filter(pl.element() != ""))
            else:
                bag = _as_bags(raw[name], path)
            columns[field_column(name)] = bag
        return pl.DataFrame(columns), unit

    def _scalars(self, raw: pl.DataFrame) -> list[str]:
        """The columns the schema names, but for lists where there may be some."""
        bags = [name for name in self.schema.multi_valued if raw.schema[name].is_nested()]
        return [name for name in dict.fromkeys(self.schema.names()) if name not in bags]


def _as_text(values: pl.Series, path: Path) -> pl.Series:
    """A column as strings.

    Raises:
        DataError: it holds lists, or what is no text.
    """
    try:
        if values.dtype.is_nested():  # structures would become texts of a kind
            raise pl.exceptions.InvalidOperationError
        return values.to_frame().select(_text(pl.col(values.name), values.dtype)).to_series()
    except pl.exceptions.PolarsError:
        lists = isinstance(values.dtype, (pl.List, pl.Array))
        hint = "; name it under multi_valued" if lists else ""
        raise DataError(
            f"{path}: column {values.name!r} of type {values.dtype} holds no numbers or texts{hint}"
        ) from None


def _as_bags(bags: pl.Series, path: Path) -> pl.Series:
    """A column of lists as lists of strings; what is missing in one is no category.

    Raises:
        DataError: the lists hold lists, or what is no text.
    """
    try:
        lists = bags.arr.to_list() if isinstance(bags.dtype, pl.Array) else bags
        inner = lists.dtype.inner  # type: ignore[attr-defined]
        if inner.is_nested():  # structures would become texts of a kind
            raise pl.exceptions.InvalidOperationError
        texts = lists.list.eval(_text(pl.element(), inner))
        # As in a cell of a CSV file, where nothing stands between two separators.
        return texts.list.eval(pl.element().filter(pl.element() != "")).fill_null([])
    except (AttributeError, pl.exceptions.PolarsError):
        raise DataError(
            f"{path}: column {bags.name!r} of type {bags.dtype} holds no lists of numbers or texts"
        ) from None


def _text(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A value as a string, the same whatever type a Parquet file keeps it in: 7.0 is the 7 of a
    file in which no value was missing, NaN is a missing one."""
    if dtype == pl.Boolean:
        return value.cast(pl.UInt8).cast(pl.String)
    if dtype.is_float():
        value = value.fill_nan(None)
        whole = value.cast(pl.Int64, strict=False)
        return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
    return value.cast(pl.String)


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
