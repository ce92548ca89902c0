"""Which rows are for training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlet.data.schema import SPLITS, SplitName
from mlet.data.source import SPLIT, TIME, RawSource, SplitBy
from mlet.data.staging import Chunk, Staged
from mlet.errors import ConfigError, DataError


@dataclass(frozen=True)
class SplitRule:
    """How rows are divided into train, valid and test.

    Attributes:
        by: ``time`` (earliest rows train, latest test), ``order`` of the file, ``random``,
            ``given`` by the source, or ``last-day`` of a source of whole days: all days but the
            last train, its first half is validation and its second half test, as TorchRec has it
            with Criteo's 24 days; None takes the source's default.
        valid, test: shares of the rows; the rest is for training.
        seed: of the random split.
    """

    by: SplitBy | None = None
    valid: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.valid < 1 and 0 < self.test < 1 and self.valid + self.test < 1):
            raise ConfigError(
                f"shares valid={self.valid} and test={self.test} must be above 0 and together "
                f"below 1, so that rows are left for training"
            )

    def check(self, source: RawSource) -> None:
        """Refuse what cannot be done with a source.

        Raises:
            ConfigError: it has not what is to be split by, or that leaves no choice of shares.
        """
        by, columns = self.by or source.default_split, source.columns
        has = {"time": columns.time, "given": columns.split, "last-day": columns.days}
        if not has.get(by, True):
            raise ConfigError(
                f"cannot split by {by!r}: the source's own split is {source.default_split!r}"
            )
        shares = (self.valid, self.test)
        if by in ("given", "last-day") and shares != (SplitRule.valid, SplitRule.test):
            why = "the rows are split already" if by == "given" else "the last day is halved"
            raise ConfigError(
                f"shares valid={self.valid} and test={self.test}: {why}; leave the shares out, or "
                f"say how to split (by time, order or random)"
            )


@dataclass(frozen=True)
class DividedChunk(Chunk):
    """Rows whose splits are known.

    Attributes:
        assignment: .npy file of the split of every row of all.
        starts: for each split, how many of its rows come before these.
    """

    assignment: Path
    starts: tuple[int, ...]

    def places(self) -> npt.NDArray[np.uint8]:
        """The split of each row: 0 train, 1 valid, 2 test."""
        places: npt.NDArray[np.uint8] = np.load(self.assignment, mmap_mode="r")[self.slice]
        return np.array(places)

    def of_splits(self) -> list[tuple[int, npt.NDArray[np.bool_]]]:
        """For each split, where its rows among these begin among all its rows, and which they
        are."""
        places = self.places()
        return [(start, places == place) for place, start in enumerate(self.starts)]


@dataclass(frozen=True)
class Division:
    """All rows, divided.

    Attributes:
        chunks: in order.
        rows: of each split.
    """

    chunks: list[DividedChunk]
    rows: tuple[int, ...]


def divide(staged: Staged, by: SplitBy, rule: SplitRule) -> Division:
    """Which rows are for what; no split is empty.

    Raises:
        DataError: one would be.
    """
    assignment, file = _assign(staged, by, rule), staged.folder / "assignment.npy"
    np.save(file, assignment)
    chunks: list[DividedChunk] = []
    rows = (0,) * len(SPLITS)
    for chunk in staged.chunks:
        chunks.append(DividedChunk(chunk.files, chunk.start, chunk.rows, file, rows))
        found = np.bincount(assignment[chunk.slice], minlength=len(SPLITS))
        rows = tuple(before + int(more) for before, more in zip(rows, found, strict=True))
    return Division(chunks, rows)


def _assign(staged: Staged, by: SplitBy, rule: SplitRule) -> npt.NDArray[np.uint8]:
    """The split of every row: 0 train, 1 valid, 2 test; none is empty."""
    rows = staged.rows
    assignment = np.empty(rows, np.uint8)
    if by == "given":
        for chunk in staged.chunks:
            assignment[chunk.slice] = chunk.read(SPLIT)[SPLIT].to_numpy()
    elif by == "last-day":
        last = max(int(chunk.read(TIME)[TIME].max()) for chunk in staged.chunks)  # type: ignore[arg-type]
        for chunk in staged.chunks:
            assignment[chunk.slice] = (chunk.read(TIME)[TIME] == last).to_numpy()
        test = int((assignment == 1).sum()) // 2
        assignment[np.flatnonzero(assignment)[-test or rows :]] = 2
    else:
        test = round(rows * rule.test)
        valid = round(rows * rule.valid)
        order: npt.NDArray[np.int64] | None = None
        if by == "time":
            time = np.concatenate([chunk.read(TIME)[TIME].to_numpy() for chunk in staged.chunks])
            order = np.argsort(time, kind="stable")
        elif by == "random":
            order = np.random.default_rng(rule.seed).permutation(rows)
        starts = (0, rows - valid - test, rows - test, rows)
        for place in range(len(SPLITS)):
            some = slice(starts[place], starts[place + 1])
            assignment[some if order is None else order[some]] = place
    empty = [name for place, name in enumerate(SPLITS) if not (assignment == place).any()]
    if empty:
        why = {"given": "no row is given to it", "last-day": "all rows are of one day"}.get(
            by if by == "given" or empty[0] == "train" else "", f"{rows} rows are too few"
        )
        raise DataError(f"the {empty[0]} split would be empty: {why}")
    return assignment


def time_ranges(division: Division) -> dict[SplitName, tuple[int, int]]:
    """The first and the last time of every split."""
    found: dict[SplitName, tuple[int, int]] = {}
    for chunk in division.chunks:
        time = chunk.read(TIME)[TIME].to_numpy()
        for split, (_, rows) in zip(SPLITS, chunk.of_splits(), strict=True):
            some = time[rows]
            if len(some):
                low, high = int(some.min()), int(some.max())
                first, last = found.get(split, (low, high))
                found[split] = min(first, low), max(last, high)
    return {split: found[split] for split in SPLITS}
