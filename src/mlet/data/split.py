"""Which rows are for training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlet.data.schema import SPLITS, SplitName
from mlet.data.source import SPLIT, TIME, RawSource, SplitBy
from mlet.data.staging import Staged
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


def assign(staged: Staged, by: SplitBy, rule: SplitRule) -> npt.NDArray[np.uint8]:
    """The split of every row: 0 train, 1 valid, 2 test; none is empty.

    Raises:
        DataError: one would be.
    """
    rows = staged.rows
    assignment = np.empty(rows, np.uint8)
    if by == "given":
        for chunk, frame in staged.chunks(SPLIT):
            assignment[chunk] = frame[SPLIT].to_numpy()
    elif by == "last-day":
        last = max(int(frame[TIME].max()) for _, frame in staged.chunks(TIME))  # type: ignore[arg-type]
        for chunk, frame in staged.chunks(TIME):
            assignment[chunk] = (frame[TIME] == last).to_numpy()
        test = int((assignment == 1).sum()) // 2
        assignment[np.flatnonzero(assignment)[-test or rows :]] = 2
    else:
        test = round(rows * rule.test)
        valid = round(rows * rule.valid)
        order: npt.NDArray[np.int64] | None = None
        if by == "time":
            time = np.concatenate([frame[TIME].to_numpy() for _, frame in staged.chunks(TIME)])
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


def time_ranges(
    staged: Staged, assignment: npt.NDArray[np.uint8]
) -> dict[SplitName, tuple[int, int]]:
    """The first and the last time of every split."""
    found: dict[SplitName, tuple[int, int]] = {}
    for chunk, frame in staged.chunks(TIME):
        time = frame[TIME].to_numpy()
        for place, split in enumerate(SPLITS):
            some = time[assignment[chunk] == place]
            if len(some):
                low, high = int(some.min()), int(some.max())
                first, last = found.get(split, (low, high))
                found[split] = min(first, low), max(last, high)
    return {split: found[split] for split in SPLITS}
