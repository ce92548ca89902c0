"""The CPU kernels over all tables at once: thread s takes ``which[starts[s]:starts[s + 1]]``.

One function for each kernel, written out: Numba keeps no compiled code on disk of functions that
another function makes.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from mlet.engine.cpu import distinct, kernels
from mlet.engine.cpu.compile import parallel_kernel


@parallel_kernel
def find_distinct(which: Any, starts: Any, arguments: Any) -> Any:
    """`distinct.find_distinct_of`: each step for every thread's share of tables."""
    ids, lookups, sizes, whole, first_rows = arguments[:5]
    loose, loose_touched, row_starts, rows, touched, slots = arguments[5:]
    counts = row_starts[1:]
    bad = np.full(len(starts) - 1, len(ids), np.int64)
    for s in numba.prange(len(starts) - 1):
        share = which[starts[s] : starts[s + 1]]
        wrong = distinct.list_of(
            share, ids, lookups, sizes, whole, loose, loose_touched, slots, counts
        )
        if wrong >= 0:
            bad[s] = wrong
    first = bad.min()
    if first < len(ids):
        return first
    distinct.add_up(row_starts)
    for s in numba.prange(len(starts) - 1):
        distinct.compact_of(
            which[starts[s] : starts[s + 1]], lookups, row_starts, first_rows, loose,
            loose_touched, rows, touched, slots,
        )  # fmt: skip
    return -1


@parallel_kernel
def embed(which: Any, starts: Any, arguments: Any) -> None:
    """`kernels.embed_of` for every thread's share of tables."""
    for s in numba.prange(len(starts) - 1):
        kernels.embed_of(which[starts[s] : starts[s + 1]], *arguments)


@parallel_kernel
def sum_gradients(which: Any, starts: Any, arguments: Any) -> None:
    """`kernels.sum_gradients_of` for every thread's share of tables."""
    for s in numba.prange(len(starts) - 1):
        kernels.sum_gradients_of(which[starts[s] : starts[s + 1]], *arguments)


@parallel_kernel
def factor_gradients(which: Any, starts: Any, arguments: Any) -> None:
    """`kernels.factor_gradients_of` for every thread's share of tables."""
    for s in numba.prange(len(starts) - 1):
        kernels.factor_gradients_of(which[starts[s] : starts[s + 1]], *arguments)


@parallel_kernel
def update(which: Any, starts: Any, arguments: Any) -> None:
    """`kernels.update_of` for every thread's share of tables."""
    for s in numba.prange(len(starts) - 1):
        kernels.update_of(which[starts[s] : starts[s + 1]], *arguments)
