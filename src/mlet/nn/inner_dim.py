"""Which tables to train with two layers, and with what inner dimension k, before any training.

Five things speak against two layers for a table of n categories and dimension d:

* *A wide table has little to gain.* Noise between unrelated categories, ``W2 W2ᵀ`` off its
  diagonal, falls as 1/√k, and of what the projection shares only d directions remain: k must be
  well above d (``docs/theory.md``). At d = 32 and k = 64 it cost logloss in ``docs/results.md``.
* *A table of width 1*, as those of linear parts, has one direction: all of it is shared already.
* *A tiny field has nothing to share with*: with n ≤ k the rows of W2 alone could be orthogonal.
* *Without a tail nobody needs to be taught by others*: a category that is met often learns its
  vector by itself.
* *Memory*: training keeps n × k floats and the optimizer's, where an ordinary table has n × d.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: k wherever memory allows.
DEFAULT_INNER_DIM = 64
#: k is at least this many times d.
WIDENING = 4
#: A category with fewer training rows is of the tail.
TAIL_BELOW = 100
#: A field has a tail if at least this share of its lookups is of such categories.
TAIL_SHARE = 0.01


@dataclass(frozen=True)
class TableSize:
    """What is known of a table before training.

    Attributes:
        rows: n.
        dim: d.
        counts: (n,) training rows of each category; None if they are not known.
    """

    rows: int
    dim: int
    counts: npt.NDArray[np.int64] | None = None

    @property
    def tail(self) -> float | None:
        """Share of the training lookups that are of categories with few training rows."""
        if self.counts is None or not self.counts.any():
            return None
        rare = self.counts[self.counts < TAIL_BELOW]
        return float(rare.sum() / self.counts.sum())


@dataclass(frozen=True)
class InnerDim:
    """What a table gets.

    Attributes:
        value: k; None for an ordinary table.
        reason: why it is not `DEFAULT_INNER_DIM`; empty where it is.
    """

    value: int | None
    reason: str = ""


def choose_inner_dims(
    tables: Mapping[str, TableSize], *, budget: int | None = None
) -> dict[str, InnerDim]:
    """An inner dimension, or none, for each table of a model.

    Args:
        tables: by name.
        budget: bytes of float32 parameters that two-layer tables may take in training, optimizer
            states not counted; the largest give way first, to k = 4 d at the least, then to
            ordinary tables. None: a quarter of this machine's memory.

    Raises:
        ValueError: the budget is below 1.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"a budget is bytes, at least 1, not {budget}")
    chosen = {name: _alone(table) for name, table in tables.items()}
    limit = machine_memory() // 4 if budget is None else budget
    while (taken := sum(_bytes(tables[name], chosen[name]) for name in tables)) > limit:
        name = max(tables, key=lambda name: _bytes(tables[name], chosen[name]))
        smaller = (chosen[name].value or 0) // 2
        reason = f"two-layer tables would take {taken:,} bytes, above {limit:,}"
        if smaller < WIDENING * tables[name].dim:
            chosen[name] = InnerDim(None, f"too large: {reason}")
        else:
            chosen[name] = InnerDim(smaller, reason)
    return chosen


def _alone(table: TableSize) -> InnerDim:
    """What a table gets where memory is no matter."""
    if WIDENING * table.dim > DEFAULT_INNER_DIM:
        return InnerDim(None, f"d = {table.dim} is wide already")
    if table.dim == 1:
        return InnerDim(None, "d = 1 has one direction only")
    if table.rows <= DEFAULT_INNER_DIM:
        return InnerDim(None, f"n = {table.rows} is small")
    tail = table.tail
    if tail is not None and tail < TAIL_SHARE:
        return InnerDim(
            None, f"no tail: {tail:.1%} of lookups have a category with < {TAIL_BELOW} rows"
        )
    return InnerDim(DEFAULT_INNER_DIM)


def _bytes(table: TableSize, chosen: InnerDim) -> int:
    """Of both factors, in float32; an ordinary table's do not count."""
    return 4 * (chosen.value or 0) * (table.rows + table.dim)


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
