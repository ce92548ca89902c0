"""Rows that cannot be read: refused, or left out up to a number that the user gave."""

from __future__ import annotations

import polars as pl

from mlet.errors import DataError


class BadRows:
    """Counts what is left out of some files, by reason.

    Attributes:
        allowed: rows that may be left out.
        counts: rows left out, by reason.
        first: what is wrong with the first row of every reason.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    @property
    def total(self) -> int:
        """Rows left out for any reason."""
        return sum(self.counts.values())

    def leave_out(self, reason: str, message: str, rows: int = 1) -> None:
        """Leave out some rows.

        Args:
            reason: what they have in common, without file, line or value.
            message: the whole error of the first of them.
            rows: how many.

        Raises:
            DataError: more than allowed are left out with them.
        """
        self.counts[reason] = self.counts.get(reason, 0) + rows
        self.first.setdefault(reason, message)
        if self.total > self.allowed:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.counts.items())
            raise DataError(
                f"{message}; with it more rows are bad than the {self.allowed:,} that may be "
                f"skipped ({reasons})"
            )

    def add(self, later: BadRows) -> None:
        """Take over what was left out of the files that come next.

        Raises:
            DataError: together they are more than allowed.
        """
        for reason, rows in later.counts.items():
            self.leave_out(reason, later.first[reason], rows)


class Sieve:
    """The rows of one frame that are kept."""

    def __init__(self, bad_rows: BadRows, rows: int) -> None:
        self._bad_rows = bad_rows
        self.kept = pl.repeat(True, rows, dtype=pl.Boolean, eager=True)

    def leave_out(self, bad: pl.Series, reason: str, message: str) -> None:
        """Leave out the rows that are ``bad`` (Boolean); each counts once.

        Raises:
            DataError: as `BadRows.leave_out`.
        """
        fresh = int((bad & self.kept).sum())
        if fresh:
            self._bad_rows.leave_out(reason, message, fresh)
        self.kept = self.kept & ~bad
