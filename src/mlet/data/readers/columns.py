"""Columns of whatever type, from files or from memory, to those that every reader gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from mlet.data import parse
from mlet.data.source import LINE, dense_column, field_column
from mlet.errors import DataError


def require(names: Sequence[str], raw: pl.DataFrame, place: Path | str, what: str = "file") -> None:
    """Refuse a frame that lacks a column.

    Raises:
        DataError: names it, and those that there are.
    """
    missing = [name for name in names if name not in raw.columns]
    if missing:
        found = [name for name in raw.columns if name != LINE]
        raise DataError(f"{place}: no column {missing[0]!r}; the {what} has {', '.join(found)}")


def typed_features(
    raw: pl.DataFrame,
    place: Path | str,
    *,
    dense: Sequence[str],
    categorical: Sequence[str],
    multi_valued: Mapping[str, str],
) -> dict[str, pl.Series]:
    """The columns of the features, as `mlet.data.source.RawColumns` says.

    Args:
        raw: with the column `LINE`.
        place: where it is from, for errors.
        dense, categorical: names of columns.
        multi_valued: names, with the separator between the categories in a text.

    Raises:
        DataError: a value is not of its column's kind; names the line.
    """
    bags = [name for name in multi_valued if raw.schema[name].is_nested()]
    scalars = [name for name in (*dense, *categorical, *multi_valued) if name not in bags]
    text = raw.select(LINE, *(as_text(raw[name], place) for name in scalars))
    columns = {dense_column(name): parse.numbers(text, name, place) for name in dense}
    columns |= {field_column(name): text[name] for name in categorical}
    for name, separator in multi_valued.items():
        if name in bags:
            columns[field_column(name)] = _as_bags(raw[name], place)
        else:
            bag = text[name].fill_null("").str.split(separator)
            columns[field_column(name)] = bag.list.eval(pl.element().filter(pl.element() != ""))
    return columns


def as_text(values: pl.Series, place: Path | str) -> pl.Series:
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
            f"{place}: column {values.name!r} of type {values.dtype} holds no numbers or "
            f"texts{hint}"
        ) from None


def _as_bags(bags: pl.Series, place: Path | str) -> pl.Series:
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
            f"{place}: column {bags.name!r} of type {bags.dtype} holds no lists of numbers or texts"
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
