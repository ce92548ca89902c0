"""Tables of which each process of a training has some rows, and none has all.

Row r is that of process r modulo their number. Ids are in the order of training counts, so that
every process has as many of the frequent categories as any other, whatever the counts are: ranges
of ids would give nearly all lookups to the first process. And who has a row is known to all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True)
class Shards:
    """Which tables, and which rows of them, are whose.

    Attributes:
        rank: the place of this process.
        size: how many there are.
        above: tables of more bytes are sharded; others are whole in every process.
    """

    rank: int
    size: int
    above: int

    def applies(self, shape: Sequence[int], dtype: torch.dtype | None) -> bool:
        """Whether a table is sharded."""
        return prod(shape) * (dtype or torch.get_default_dtype()).itemsize > self.above

    def count(self, rows: int, rank: int | None = None) -> int:
        """How many rows of a table are a process', by default this one's."""
        rank = self.rank if rank is None else rank
        return (rows - rank + self.size - 1) // self.size

    def own(self, first: int = 0) -> slice:
        """Of a table's rows from ``first`` on those of this process; ``first`` counts from 0."""
        return slice((self.rank - first) % self.size, None, self.size)


_current: ContextVar[Shards | None] = ContextVar("which rows are whose", default=None)


@contextmanager
def sharded(shards: Shards | None) -> Iterator[None]:
    """Within the context, large tables of models are made as shards; with None, whole."""
    token = _current.set(shards)
    try:
        yield
    finally:
        _current.reset(token)


def current_shards() -> Shards | None:
    """How tables are sharded that are made now; None if they are whole."""
    return _current.get()
