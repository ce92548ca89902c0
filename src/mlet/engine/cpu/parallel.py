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
    """`distinct.find_distinct_of` for every thread's share of tables."""
    bad = np.full(len(starts) - 1, -1, np.int64)
    for s in numba.prange(len(starts) - 1):
        bad[s] = distinct.find_distinct_of(which[starts[s] : starts[s + 1]], *arguments)
    return bad


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
