"""Columns of time: one form and unit for all rows of all files, or a refusal that names both.

Of integers, the unit is told by their size: only that can be seen of `1704067200` in one file and
`1704067200000` in another. A schema's ``time_format`` says it instead.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import polars as pl

from mlet.data import parse
from mlet.data.bad_rows import Sieve
from mlet.data.source import LINE
from mlet.errors import ConfigError, DataError

DATES, ZONED, COUNTS = "dates", "dates with an offset from UTC", "integers, of no known unit"
#: Units of time since 1970, and how many of each are a second.
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
#: What a ``time_format`` may be beside a pattern.
FORMATS = ("iso", *UNITS, "integers")
#: Seconds since 1970 of 1973, below which an integer may be anything.
_LEAST_SECONDS = 10**8
#: As far as the times of a known unit go: the years 1900 to 2200.
_EARLIEST, _LATEST = -2_208_988_800, 7_258_118_400
#: Year, month, day, and perhaps the time of the day; then the offset.
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}(?:$|[T ])"
_OFFSET = r"^\d{4}-\d{2}-\d{2}[T ].*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"
_OTHER_DATE = re.compile(r"^\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}")
_REMEDY = "bring them to one form"


def check_format(time_format: str) -> None:
    """Refuse what is no form of a whole date.

    Raises:
        ConfigError: it is neither one of `FORMATS` nor a pattern with year, month and day.
    """
    if time_format in FORMATS:
        return
    moment = dt.datetime(2021, 11, 23, 21, 0, 0, tzinfo=dt.timezone.utc)
    try:
        text = pl.Series([moment]).dt.strftime(time_format)
        good = "%" in time_format and _by_pattern(text, time_format).dt.date()[0] == moment.date()
    except pl.exceptions.PolarsError:
        good = False
    if not good:
        raise ConfigError(
            f"schema: 'time_format' must be one of {', '.join(FORMATS)}, or a pattern of year, "
            f"month and day, as '%d/%m/%Y %H:%M:%S'; got {time_format!r}"
        )


def read_times(
    stamp: pl.Series, text: pl.DataFrame, path: Path, time_format: str | None, sieve: Sieve | None
) -> tuple[pl.Series, str]:
    """The time of every row as Int64, and the kind of times that they are.

    Args:
        stamp: the column as it is in the file.
        text: the frame it is in, as strings.
        path: the file.
        time_format: as of a schema; None sees integers and dates in ISO form for themselves.
        sieve: what may be left out.

    Returns:
        Dates, and units of a ``time_format``, as microseconds since 1970; else integers as they
        are.

    Raises:
        DataError: a time is missing, or in another form.
    """
    name = stamp.name
    if stamp.dtype in (pl.Date, pl.Datetime):
        if time_format in ("integers", *UNITS):
            raise DataError(
                f"{path}: column {name!r} holds dates, where the schema's time_format says "
                f"{time_format}; leave time_format out, or {_REMEDY}"
            )
        parse.refuse_first(text, stamp.is_null(), name, path, "a date", sieve)
        zone = isinstance(stamp.dtype, pl.Datetime) and stamp.dtype.time_zone is not None
        return stamp.cast(pl.Datetime("us")).cast(pl.Int64), ZONED if zone else DATES
    strings = text[name].str.strip_chars()
    if time_format in UNITS:
        return _of_unit(text, name, path, time_format or "", sieve), DATES
    if time_format == "iso" or (time_format is None and _looks_dated(strings)):
        return _iso(strings, text, path, sieve)
    if time_format in (None, "integers"):
        expected = "a 64-bit integer" if time_format else _expectation(strings)
        values = parse.integers(text, name, path, required=True, expected=expected, sieve=sieve)
        return values, COUNTS if time_format else kind_of(values, name, path)
    assert time_format is not None
    dates = _by_pattern(strings, time_format)
    expected = f"a time of the form {time_format!r}, as the schema's time_format says"
    parse.refuse_first(text, dates.is_null(), name, path, expected, sieve)
    zone = isinstance(dates.dtype, pl.Datetime) and dates.dtype.time_zone is not None
    return dates.cast(pl.Int64), ZONED if zone else DATES


def _expectation(strings: pl.Series) -> str:
    """What was expected where something else than an integer is found."""
    others = strings.filter(strings.cast(pl.Int64, strict=False).is_null() & strings.is_not_null())
    if len(others) and _OTHER_DATE.match(others[0]):
        return (
            "a 64-bit integer or a date in ISO form; whether day or month comes first is not "
            "guessed: say time_format: '%d/%m/%Y' or '%m/%d/%Y', or whatever it is, in the schema"
        )
    return "a 64-bit integer or a date in ISO form; say time_format in the schema for another form"


def _of_unit(
    text: pl.DataFrame, name: str, path: Path, unit: str, sieve: Sieve | None
) -> pl.Series:
    """Numbers of a unit, with or without fractions, as microseconds."""
    column, second = text[name].str.strip_chars(), UNITS[unit]
    whole = column.cast(pl.Int64, strict=False)
    fraction = column.cast(pl.Float64, strict=False)
    # Not in floats, which know no nanosecond of today.
    exact = whole * (10**6 // second) if second <= 10**6 else whole // (second // 10**6)
    rounded = (fraction * (10**6 / second)).round()
    bad = ~(fraction / second).is_between(_EARLIEST, _LATEST).fill_null(False)
    parse.refuse_first(text, bad, name, path, f"{unit} since 1970, of 1900 to 2200", sieve)
    times: pl.Series = exact.fill_null(rounded.set(bad, None).cast(pl.Int64)).set(bad, None)
    return times


def _iso(
    strings: pl.Series, text: pl.DataFrame, path: Path, sieve: Sieve | None
) -> tuple[pl.Series, str]:
    """Dates in ISO form; all with an offset from UTC, or none."""
    name = strings.name
    # Polars guesses, and takes 01-02-2024 for the first of February.
    strings = strings.set(~strings.str.contains(_ISO_DATE).fill_null(False), None)
    zoned = strings.str.contains(_OFFSET)
    by_kind = [_dates(strings.set(zoned != wanted, None)) for wanted in (True, False)]
    dates = by_kind[0].fill_null(by_kind[1])
    parse.refuse_first(text, dates.is_null(), name, path, "a date in ISO form", sieve)
    zoned = zoned.filter(dates.is_not_null())
    if zoned.any() and not zoned.all():
        lines = text.filter(dates.is_not_null())[LINE]
        first, other = (lines.filter(zoned == wanted)[0] for wanted in (True, False))
        raise DataError(
            f"{path}: column {name!r} holds dates with an offset from UTC in line {first}, without "
            f"one in line {other}; {_REMEDY}"
        )
    return dates, ZONED if zoned.any() else DATES


def _dates(strings: pl.Series) -> pl.Series:
    """Strings as microseconds since 1970; null where they are no dates."""
    try:
        dates: pl.Series = strings.str.to_datetime(time_unit="us", strict=False).cast(pl.Int64)
        return dates
    except pl.exceptions.PolarsError:  # it knows none of the formats
        return pl.Series([None] * len(strings), dtype=pl.Int64)


def _by_pattern(strings: pl.Series, pattern: str) -> pl.Series:
    """Strings as datetimes of microseconds; null where they are none."""
    if re.search(r"%[HkIl]", pattern) and not re.search(r"%[MRTXrc]", pattern):
        # An hour alone is no time to Polars.
        strings, pattern = strings + ":00", f"{pattern}:%M"
    dates: pl.Series = strings.str.to_datetime(pattern, time_unit="us", strict=False)
    return dates


def _looks_dated(strings: pl.Series) -> bool:
    dated = strings.str.contains(_ISO_DATE)
    return int(dated.sum()) * 2 >= len(dated) - dated.null_count() > 0


def kind_of(values: pl.Series, name: str = "time", path: Path | None = None) -> str:
    """What integers are, by their size or their digits; `COUNTS` where that tells nothing.

    Args:
        values: Int64.
        name, path: of the column and its file, for the error.

    Raises:
        DataError: some are of one unit of time, others of another; where ``path`` is None, they
            are `COUNTS`.
    """
    values = values.drop_nulls()
    for digits in (8, 10, 12, 14):
        if len(values) and _is_calendar(values, digits):
            return f"integers, by their digits {'YYYYMMDDHHMMSS'[:digits]}"
    found = {}
    for unit, second in UNITS.items():
        low = _LEAST_SECONDS * second
        of_unit = values.is_between(low, min(low * 1000, 2**63) - 1)
        if of_unit.any():
            found[unit] = values.filter(of_unit)[0]
    if len(found) > 1 and path is not None:
        (one, first), (other, second_) = list(found.items())[:2]
        raise DataError(
            f"{path}: column {name!r} holds {one} since 1970, by their size, as {first}, and "
            f"{other}, as {second_}; {_REMEDY}, or say time_format: integers in the schema"
        )
    return f"integers, by their size {next(iter(found))} since 1970" if len(found) == 1 else COUNTS


def _is_calendar(values: pl.Series, digits: int) -> bool:
    """Whether all integers are a date and perhaps a time of the day in so many digits."""
    day = values // 10 ** (digits - 8)
    good = (
        (day // 10**4).is_between(1900, 2100)
        & (day // 100 % 100).is_between(1, 12)
        & (day % 100).is_between(1, 31)
    )
    rest = values % 10 ** (digits - 8)
    for place, most in zip(range(digits - 10, -1, -2), (23, 59, 60), strict=False):
        good = good & (rest // 10**place % 100 <= most)
    return bool(good.all())


def unit_of(kind: str) -> str | None:
    """The unit that integers of a kind are of, by their size; None of other kinds."""
    return next((unit for unit in UNITS if f" {unit} " in f" {kind} "), None)


class OneKind:
    """Whether the times of all files are of one kind."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._files: dict[Path, str] = {}

    def add(self, kind: str, path: Path, line: int) -> None:
        """The kind of the rows from a line of a file on.

        Raises:
            DataError: it is another than that of rows before; names both files.
        """
        known = self._files.get(path, kind)
        if known != kind and not _may_be_one(known, kind):
            self._refuse(path, kind, path, known, f", line {line}")
        # A count that begins low may go on as high as seconds are.
        self._files[path] = kind if known == COUNTS else known
        for other, theirs in self._files.items():
            if theirs != self._files[path] and not _may_be_one(theirs, kind):
                self._refuse(path, kind, other, theirs, f", line {line}")

    def finish(self) -> str | None:
        """The kind of all files; None if there were none.

        Raises:
            DataError: they are not of one kind.
        """
        kinds = list(self._files.items())
        for path, kind in kinds[1:]:
            if kind != kinds[0][1]:
                self._refuse(path, kind, *kinds[0], "")
        return kinds[0][1] if kinds else None

    def _refuse(self, path: Path, kind: str, other: Path, known: str, line: str) -> None:
        where = "further up" if other == path else str(other)
        raise DataError(
            f"{path}{line}: column {self._column!r} holds {kind}, {where} {known}; {_REMEDY}, or "
            f"say time_format in the schema, where one form is that of all"
        )


def _may_be_one(one: str, other: str) -> bool:
    """Whether rows of these kinds may turn out to be of one, once all were seen."""
    return COUNTS in (one, other) and all(kind.startswith("integers") for kind in (one, other))


def show_time(value: int, kind: str) -> str:
    """A time as `read_times` gives it, for a person; integers of no known unit as they are."""
    unit = "microseconds" if kind in (DATES, ZONED) else unit_of(kind)
    per_second = None if unit is None else UNITS[unit]
    if per_second is None or not _EARLIEST <= value // per_second <= _LATEST:
        return str(value)
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=value // per_second)
    return f"{moment:%Y-%m-%d %H:%M:%S}"
