"""Categories as strings: the same whatever file and type they are kept in.

7.0 is the 7 of a file in which no value was missing; true, True and a Parquet boolean are the 1 of
a file that has 0 and 1; NaN is a missing value. 007 and 7 are two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from mlet.errors import DataError

#: 7.0, which is the 7 of other files; and the words for 0 and 1.
WHOLE_FLOAT = r"^-?(?:0|[1-9]\d*)\.0+$"
WORDS = {word: digit for digit, names in (("0", "false"), ("1", "true"))
          for word in (names, names.title(), names.upper())}  # fmt: skip


def as_text(values: pl.Series, path: Path | str) -> pl.Series:
    """A column as strings; those of a String column are as they were.

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


def as_bags(bags: pl.Series, path: Path | str) -> pl.Series:
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
    """A value as a string."""
    if dtype == pl.Boolean:
        return value.cast(pl.UInt8).cast(pl.String)
    if dtype.is_float():
        value = value.fill_nan(None)
        whole = value.cast(pl.Int64, strict=False)
        return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
    return value.cast(pl.String)


def one_spelling(texts: pl.Series) -> pl.Series:
    """Strings with one spelling for each category."""
    # Most columns hold none that has several, which is sooner seen than done.
    if texts.str.contains(r"\.0+$").any() or texts.is_in(list(WORDS)).any():
        return texts.to_frame().select(_spelled(pl.col(texts.name))).to_series()
    return texts


def one_spelling_in_bags(bags: pl.Series) -> pl.Series:
    """The same of lists of strings."""
    return bags.list.eval(_spelled(pl.element()))


def _spelled(text: pl.Expr) -> pl.Expr:
    bare = text.str.replace(r"\.0+$", "").replace({"-0": "0"})
    return pl.when(text.str.contains(WHOLE_FLOAT)).then(bare).otherwise(text.replace(WORDS))


def texts_of(values: Iterable[object]) -> list[str]:
    """Values of a schema as the categories that they stand for."""
    spelled: list[str] = one_spelling(
        pl.Series([str(value).strip() for value in values], dtype=pl.String)
    ).to_list()
    return spelled
