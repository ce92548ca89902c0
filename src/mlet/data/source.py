"""What every reader of raw data delivers to `mlet.data.prepare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import polars as pl

from mlet.errors import DataError

#: Column that holds each record's line number (1-based) in a frame of raw rows.
LINE = "__line__"

LABEL, TIME, SPLIT, PROBABILITY = "label", "time", "split", "probability"
#: Whose rows belong together, as those of a user.
GROUP = "group"
#: What a row counts for, beside others, and the most that it may.
WEIGHT, MAX_WEIGHT = "weight", 1e30

#: How a dense feature is scaled; what is missing becomes 0. ``log`` is ``log(1 + max(x, 0))``;
#: ``signed_log`` is ``sign(x) log(1 + |x|)``; ``standard`` is less its mean, by its standard
#: deviation, and ``quantile`` its rank, from -1 to 1, both among the training rows.
DenseScale = Literal["log", "none", "signed_log", "standard", "quantile"]

#: How rows are divided; see `mlet.data.split.SplitRule`.
SplitBy = Literal["time", "order", "random", "given", "last-day"]


def dense_column(name: str) -> str:
    """Frame column of a dense feature; prefixed so that no name can collide with the label's."""
    return f"dense:{name}"


def field_column(name: str) -> str:
    """Frame column of a categorical field."""
    return f"field:{name}"


def kept_column(name: str) -> str:
    """Frame column of one that no model sees."""
    return f"kept:{name}"


@dataclass(frozen=True)
class RawColumns:
    """The columns a source's frames have, beside ``label`` (UInt8, 0 or 1).

    Attributes:
        dense: features by name, with how each is scaled; Float64 columns, null where missing.
        categorical: one-valued fields; String columns. Missing is a category of its own, "".
        multi_valued: fields with a bag of categories a row; List(String) columns.
        time: whether there is a ``time`` column (Int64) to split by.
        days: whether that is whole days, of which the last may be held out.
        split: whether there is a ``split`` column (UInt8: 0 train, 1 valid, 2 test).
        probability: whether there is the true click ``probability`` (synthetic data only).
        indicated: dense features beside which a column says whether they are missing.
        weight: whether there is a ``weight`` of each row (Float64, from 0 to `MAX_WEIGHT`).
        shares: fields that have the categories of others, by name: those others'.
        group: the name of what rows are grouped by, in a ``group`` column (String; null is no
            group); None where there is none.
        kept: columns that no model sees, to score slices of rows by; String columns.
    """

    dense: dict[str, DenseScale]
    categorical: tuple[str, ...]
    multi_valued: tuple[str, ...] = ()
    time: bool = False
    days: bool = False
    split: bool = False
    probability: bool = False
    indicated: tuple[str, ...] = ()
    weight: bool = False
    shares: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    kept: tuple[str, ...] = ()


@runtime_checkable
class RawSource(Protocol):
    """Raw click data: what it is, which columns it has, and its rows a frame at a time."""

    @property
    def description(self) -> str:
        """One line for the schema: the format and the files."""
        ...

    @property
    def columns(self) -> RawColumns:
        """The columns of every frame."""
        ...

    @property
    def default_split(self) -> SplitBy:
        """How to split unless the user says otherwise."""
        ...

    def frames(self) -> Iterator[pl.DataFrame]:
        """The rows, in file order.

        Raises:
            DataError: the input is damaged; names the file and line.
        """
        ...


@dataclass(frozen=True)
class RawPart:
    """Rows of a source that can be read by themselves.

    Attributes:
        file: its place among the source's paths.
        first: the first of its rows, where a file's rows can be counted off.
        rows: how many at most; None for all that follow.
    """

    file: int
    first: int = 0
    rows: int | None = None


class Notes(Protocol):
    """What reading rows leaves behind for those that follow, and for the end."""

    def add(self, later: Any) -> None:
        """Take over the notes of the rows that come next.

        Raises:
            DataError: together they cannot be read.
        """
        ...


class NoNotes:
    """Of sources whose files have nothing to do with one another."""

    def add(self, later: NoNotes) -> None:
        """There is nothing to take over."""


@runtime_checkable
class PartedSource(RawSource, Protocol):
    """Raw data that several workers can read, each some parts: ``frames`` gives the frames of all
    parts, read in order with the same notes, and then finishes those."""

    @property
    def paths(self) -> Sequence[Path]:
        """All files."""
        ...

    def parts(self) -> list[RawPart]:
        """All rows, in order."""
        ...

    def notes(self) -> Notes:
        """Of no rows."""
        ...

    def read(self, part: RawPart, notes: Any) -> Iterator[pl.DataFrame]:
        """The frames of a part; ``notes`` are of all rows before it, and then of its own too.

        Raises:
            DataError: the input is damaged; names the file and line.
        """
        ...

    def finish(self, notes: Any) -> None:
        """Say what is to be said of all rows.

        Raises:
            DataError: together they are not what they should be.
        """
        ...


class WholeFiles:
    """The parts of a source with ``paths`` of which each is read whole, by itself."""

    paths: tuple[Path, ...]

    def parts(self) -> list[RawPart]:
        """See `PartedSource`."""
        return [RawPart(place) for place in range(len(self.paths))]

    def notes(self) -> NoNotes:
        """See `PartedSource`."""
        return NoNotes()

    def finish(self, notes: NoNotes) -> None:
        """See `PartedSource`."""


def frames_of(source: PartedSource) -> Iterator[pl.DataFrame]:
    """All rows in order, as `RawSource.frames`."""
    notes = source.notes()
    for part in source.parts():
        yield from source.read(part, notes)
    source.finish(notes)


class RawRows(NamedTuple):
    """N rows to be scored.

    Attributes:
        place: the file they are from.
        lines: where in it each row is (N,).
        features: the columns that `RawColumns` says, without label, time and split.
        kept: raw columns that are passed through, as they are.
    """

    place: Path | str
    lines: pl.Series
    features: pl.DataFrame
    kept: pl.DataFrame


@runtime_checkable
class RowSource(Protocol):
    """Raw data whose rows can be read without a label, as those to be scored are."""

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """All rows in file order; ``keep`` are names of raw columns.

        Raises:
            DataError: the input is damaged, or lacks a column; names the file and line.
        """
        ...


def rows_of(source: RawSource, keep: Sequence[str]) -> Iterator[RawRows]:
    """The rows to be scored of any source; one that is no `RowSource` needs labels.

    Raises:
        DataError: as `RowSource.rows`.
    """
    if isinstance(source, RowSource):
        yield from source.rows(keep)
        return
    done = 0
    for frame in source.frames():
        check_frame(frame, source)
        lines = pl.Series("line", range(done + 1, done + 1 + len(frame)), pl.UInt64)
        done += len(frame)
        yield RawRows(source.description, lines, frame, kept(frame, keep, source.description))


def kept(raw: pl.DataFrame, keep: Sequence[str], place: Path | str) -> pl.DataFrame:
    """Some raw columns, as they are.

    Raises:
        DataError: there is none of that name.
    """
    missing = [name for name in keep if name not in raw.columns]
    if missing:
        found = [name for name in raw.columns if name != LINE]
        raise DataError(
            f"{place}: no column {missing[0]!r} to keep; the file has {', '.join(found)}"
        )
    return raw.select(keep)


def check_frame(frame: pl.DataFrame, source: RawSource) -> None:
    """Refuse what a reader, maybe of another package, must not give.

    Raises:
        DataError: a column is missing, or of another type, or holds other values.
    """
    columns = source.columns
    expected: dict[str, pl.DataType | type[pl.DataType]] = {
        LABEL: pl.UInt8,
        **({TIME: pl.Int64} if columns.time else {}),
        **({SPLIT: pl.UInt8} if columns.split else {}),
        **({PROBABILITY: pl.Float64} if columns.probability else {}),
        **({WEIGHT: pl.Float64} if columns.weight else {}),
        **({GROUP: pl.String} if columns.group is not None else {}),
        **dict.fromkeys(map(dense_column, columns.dense), pl.Float64),
        **dict.fromkeys(map(kept_column, columns.kept), pl.String),
        **dict.fromkeys(map(field_column, columns.categorical), pl.String),
        **dict.fromkeys(map(field_column, columns.multi_valued), pl.List(pl.String)),
    }
    for name, dtype in expected.items():
        found = frame.schema.get(name)
        if found != dtype:
            what = "does not give" if found is None else f"gives as {found}"
            raise DataError(
                f"{source.description}: the reader {what} the column {name!r} of type {dtype}"
            )
    for name, most in ((LABEL, 1), (SPLIT, 2)):
        if name in expected and ((frame[name] > most).any() or frame[name].null_count()):
            raise DataError(
                f"{source.description}: the reader gives other values of {name!r} than 0 to {most}"
            )
    if columns.weight and not frame[WEIGHT].is_between(0, MAX_WEIGHT).fill_null(False).all():
        raise DataError(
            f"{source.description}: the reader gives other values of {WEIGHT!r} than 0 to "
            f"{MAX_WEIGHT:g}"
        )
