"""Strings to numbers, with an error that names file, line, column and value.

With a `Sieve`, rows whose values cannot be read are left out instead, as far as it allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from mlet.data.bad_rows import Sieve
from mlet.data.source import LINE, MAX_WEIGHT
from mlet.data.texts import one_spelling
from mlet.errors import DataError

#: Words for 0 and 1, in lower case.
FALSE, TRUE = ("0", "false", "f", "no", "n"), ("1", "true", "t", "yes", "y")


def refuse_first(
    frame: pl.DataFrame,
    bad: pl.Series,
    column: str,
    path: Path | str,
    expected: str,
    sieve: Sieve | None = None,
) -> None:
    """Name the first row of a frame whose value is bad, if there is one.

    Raises:
        DataError: there is, and the sieve, if any, may leave out no more; says what was expected.
    """
    if sieve is not None:
        bad = bad & sieve.kept
    if bad.any():
        row = frame.filter(bad).row(0, named=True)
        value = row[column]
        shown = "nothing" if value is None else repr(value if len(value) < 60 else value[:57] + "…")
        problem = f"column {column!r} holds {shown}, expected {expected}"
        if sieve is None:
            raise DataError(f"{path}, line {row[LINE]}: {problem}")
        sieve.leave_out(
            bad, f"column {column!r} unreadable", f"{path}, line {row[LINE]}: {problem}"
        )


def integers(
    frame: pl.DataFrame,
    column: str,
    path: Path | str,
    *,
    required: bool = False,
    expected: str = "a 64-bit integer",
    sieve: Sieve | None = None,
) -> pl.Series:
    """The column as Int64; missing values stay missing unless ``required``.

    Raises:
        DataError: a value is no integer, does not fit 64 bits, or is missing where required.
    """
    if frame.schema[column] == pl.Int64 and not required:  # read as such
        return frame[column]
    text = frame[column].str.strip_chars()
    values: pl.Series = text.cast(pl.Int64, strict=False)
    bad = values.is_null() if required else values.is_null() & text.is_not_null()
    refuse_first(frame, bad, column, path, expected, sieve)
    return values


def numbers(
    frame: pl.DataFrame,
    column: str,
    path: Path | str,
    *,
    required: bool = False,
    sieve: Sieve | None = None,
) -> pl.Series:
    """The column as Float64; missing values, nothing between quotes too, stay missing unless
    ``required``.

    Raises:
        DataError: a value is no number, NaN or infinite, or is missing where required.
    """
    text = frame[column].str.strip_chars()
    values: pl.Series = text.cast(pl.Float64, strict=False)
    bad = values.is_null() if required else values.is_null() & (text != "").fill_null(False)
    bad = bad | (~values.is_finite()).fill_null(False)
    refuse_first(frame, bad, column, path, "a finite number", sieve)
    return values


def weights(
    frame: pl.DataFrame, column: str, path: Path | str, *, sieve: Sieve | None = None
) -> pl.Series:
    """The column as what rows count for (Float64).

    Raises:
        DataError: a value is no number from 0 to `MAX_WEIGHT`, or is missing.
    """
    values: pl.Series = frame[column].str.strip_chars().cast(pl.Float64, strict=False)
    bad = ~values.is_between(0, MAX_WEIGHT).fill_null(False)
    expected = (
        f"a weight, a number from 0 to {MAX_WEIGHT:g} (0 for a row that is to count for nothing; "
        f"or take 'weight' out of the schema)"
    )
    refuse_first(frame, bad, column, path, expected, sieve)
    return values


def labels(
    frame: pl.DataFrame, column: str, path: Path | str, *, sieve: Sieve | None = None
) -> pl.Series:
    """The column as 0/1 (UInt8).

    Raises:
        DataError: a value is neither 0 nor 1 (also written 0.0 and 1.0, or with the words of
            `FALSE` and `TRUE`, in any case), or is missing.
    """
    text = frame[column].str.strip_chars().str.to_lowercase()
    words = dict.fromkeys(FALSE, "0") | dict.fromkeys(TRUE, "1")
    values = text.replace(words).cast(pl.Float64, strict=False)
    bad = ~values.is_in([0.0, 1.0]).fill_null(False)
    expected = "a label, 0 or 1 (other values that are clicks: positive or threshold, in a schema)"
    refuse_first(frame, bad, column, path, expected, sieve)
    zero_or_one: pl.Series = values.set(bad, None).cast(pl.UInt8)
    return zero_or_one


def splits(
    frame: pl.DataFrame,
    column: str,
    places: Mapping[str, int],
    path: Path | str,
    *,
    sieve: Sieve | None = None,
) -> pl.Series:
    """The column as the place of each row's split (UInt8).

    Args:
        frame, column, path: where the values are.
        places: the place of a split among the three, by value in lower case; 0.0 is 0, true is 1.
        sieve: what may be left out.

    Raises:
        DataError: a value stands for no split, or is missing.
    """
    text = one_spelling(frame[column].str.strip_chars()).str.to_lowercase()
    found: pl.Series = text.replace_strict(places, default=None, return_dtype=pl.UInt8)
    refuse_first(frame, found.is_null(), column, path, f"one of {', '.join(places)}", sieve)
    return found
