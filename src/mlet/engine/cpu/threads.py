"""Threads for the CPU kernels: as many as torch uses, sharing out tables by their work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch

#: Below this many lookups, waking other threads costs more than it saves.
_MIN_WORK = 1_024

_NUMBA_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
# One of Numba's threading layers must not be entered by two threads at once.
_lock = threading.Lock()
# OpenMP's threads do not survive a fork, and entering it from a forked process ends that process.
_process = os.getpid()


def share_out(work: Sequence[int], threads: int) -> tuple[Any, Any]:
    """Split tables over threads, largest first, each to the thread with least to do.

    Returns ``which``, the tables in the order of their shares, and ``starts``: share s is
    ``which[starts[s]:starts[s + 1]]``. Both are int64.
    """
    shares: list[list[int]] = [[] for _ in range(threads)]
    loads = [0] * threads
    for table in sorted(range(len(work)), key=lambda place: -work[place]):
        lightest = loads.index(min(loads))
        shares[lightest].append(table)
        loads[lightest] += work[table]
    which = np.array([table for share in shares for table in sorted(share)], dtype=np.int64)
    starts = np.cumsum([0, *(len(share) for share in shares)], dtype=np.int64)
    return which, starts


def run(
    serial: Callable[..., Any], parallel: Callable[..., Any], work: Sequence[int], *arguments: Any
) -> Any:
    """Run a kernel over all tables, in threads if there is enough to do.

    Args:
        serial: called as ``serial(which, *arguments)``.
        parallel: called as ``parallel(which, starts, arguments)``.
        work: the number of lookups or rows of each table.
        arguments: of both.
    """
    threads = min(torch.get_num_threads(), len(work), _NUMBA_THREADS)
    if threads == 1 or sum(work) < _MIN_WORK or os.getpid() != _process:
        return serial(np.arange(len(work)), *arguments)
    which, starts = share_out(work, threads)
    with _lock:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            return parallel(which, starts, arguments)
        finally:
            numba.set_num_threads(before)
