"""What a column may be, seen from some of its values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mlet.data import kinds, parse
from mlet.data.texts import as_text
from mlet.data.times import UNITS, kind_of, unit_of
from mlet.errors import DataError

#: What often stands for a missing value.
MARKERS = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N", "-")
#: Separators within a cell that no category is likely to hold.
_BAG_SEPARATORS = ("|", ";")
_SPLITS = {"train", "valid", "validation", "test"}
#: What columns of splits are called that have numbers for them.
_SPLIT_NAMES, _NUMBERED = {"part", "split"}, {"0", "1", "2"}
#: Days and months in numbers, in both orders, with and without the time of the day.
_AMBIGUOUS = [
    tuple(f"{order[0]}{mark}{order[1]}{mark}%Y{time}" for order in (("%d", "%m"), ("%m", "%d")))
    for mark in "/.-"
    for time in ("", " %H:%M", " %H:%M:%S")
]
#: Seconds of the years 2000 to 2040: other large integers are rather identifiers, but for columns
#: that are called as times are.
_RECENT = (946_684_800, 2_208_988_800)
_TIME_NAME = re.compile(r"time|date|(?:^|_)ts(?:$|_)", re.IGNORECASE)


@dataclass(frozen=True)
class Profile:
    """What is seen of a column.

    Attributes:
        name: of the column.
        kind: as of `mlet.data.kinds`; ``list`` for lists; None where all is missing.
        distinct, rows: different values, and rows with one.
        missing: share of the rows without one.
        markers: values that often stand for a missing one.
        binary: whether the values are 0 and 1, or words for them, and both occur.
        negative: whether some are below 0.
        bag: the separator between the categories of a cell.
        split: whether the values are the names of splits, or their numbers in a column of theirs.
        times: forms of the time that all values have: ``iso``, patterns, or "" for integers that
            look like times; several where it cannot be known.
        example: a value.
    """

    name: str
    kind: str | None
    distinct: int = 0
    rows: int = 0
    missing: float = 0.0
    markers: tuple[str, ...] = ()
    binary: bool = False
    negative: bool = False
    bag: str | None = None
    split: bool = False
    times: tuple[str, ...] = ()
    example: str = ""


def profile(column: pl.Series) -> Profile:
    """What some values of a column show."""
    if isinstance(column.dtype, (pl.List, pl.Array)):
        return Profile(column.name, "list")
    try:
        texts = as_text(column, Path(column.name))
    except DataError:
        return Profile(column.name, f"values of type {column.dtype}")
    texts = texts.str.strip_chars()
    texts = texts.set((texts == "").fill_null(False), None)
    present = texts.drop_nulls()
    markers = tuple(marker for marker in MARKERS if (present == marker).any())
    values = present.filter(~present.is_in(list(markers)))
    if not len(values):
        return Profile(column.name, None, markers=markers, missing=1.0)
    kind = kinds.kind_of(values)
    words = set(values.str.to_lowercase().unique().head(20))
    numbers = values.cast(pl.Float64, strict=False)
    dated = column.dtype in (pl.Date, pl.Datetime)
    return Profile(
        column.name,
        kind,
        distinct=values.n_unique(),
        rows=len(values),
        missing=1 - len(present) / len(column),
        markers=markers,
        binary=_is_binary(words),
        negative=kind in (kinds.WHOLE, kinds.DECIMAL) and bool((numbers < 0).any()),
        bag=_bag(values) if kind == kinds.TEXT and not dated else None,
        split=(len(words) > 1 and words <= _SPLITS)
        or (
            column.name.lower() in _SPLIT_NAMES
            and {w.removesuffix(".0") for w in words} == _NUMBERED
        ),
        times=("",) if dated else _times(values, kind, column.name),
        example=values[0][:40],
    )


def _is_binary(words: set[str]) -> bool:
    """Whether words in lower case stand for 0 and 1, and both occur."""
    whole = {word.removesuffix(".0") for word in words}
    no, yes = set(parse.FALSE), set(parse.TRUE)
    return bool(whole & no) and bool(whole & yes) and whole <= no | yes


def _bag(values: pl.Series) -> str | None:
    """The separator of categories that occur in several cells."""
    for mark in _BAG_SEPARATORS:
        share = values.str.contains(mark, literal=True).mean()
        if isinstance(share, float) and share > 0.1:
            parts = values.str.split(mark).explode()
            if parts.n_unique() < len(parts) / 2:
                return mark
    return None


def is_time_name(name: str) -> bool:
    """Whether a column is called as times are."""
    return bool(_TIME_NAME.search(name))


def _times(values: pl.Series, kind: str | None, name: str) -> tuple[str, ...]:
    """The forms of time that all values have."""
    if kind == kinds.WHOLE:
        whole = values.cast(pl.Int64, strict=False)
        found = kind_of(whole)
        if "digits" in found:
            return ("",) if values.n_unique() > 1 else ()
        unit = unit_of(found)
        if unit is None:
            return ()
        first, last = (int(value) // UNITS[unit] for value in (whole.min(), whole.max()))
        recent = _RECENT[0] <= first <= last <= _RECENT[1]
        return ("",) if recent or is_time_name(name) else ()
    if kind != kinds.TEXT:
        return ()
    if values.str.contains(r"^\d{4}-\d{2}-\d{2}(?:$|[T ])").all():
        return ("",)
    for patterns in _AMBIGUOUS:
        read = {
            pattern: values.str.to_datetime(pattern, strict=False).null_count()
            for pattern in patterns
        }
        good = tuple(pattern for pattern, failures in read.items() if not failures)
        if good:
            return good
    return ()
