"""Threads for the CPU kernels: as many as torch uses, sharing out tables by their work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch

from mlet.engine.cpu.compile import kernel

#: Below this many lookups, waking other threads costs more than it saves.
_MIN_WORK = 1_024

_NUMBA_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
# One of Numba's threading layers must not be entered by two threads at once.
_lock = threading.Lock()
# OpenMP's threads do not survive a fork, and entering it from a forked process ends that process.
_process = os.getpid()


@kernel
def share_out(work: Any, threads: int) -> Any:
    """Split tables over threads, largest first, each to the thread with least to do.

    Returns ``which``, the tables in the order of their shares, and ``starts``: share s is
    ``which[starts[s]:starts[s + 1]]``. Both are int64.
    """
    loads = np.zeros(threads, np.int64)
    owners = np.empty(len(work), np.int64)
    for place in np.argsort(-work, kind="mergesort"):
        lightest = np.argmin(loads)
        owners[place] = lightest
        loads[lightest] += work[place]
    which = np.empty(len(work), np.int64)
    starts = np.zeros(threads + 1, np.int64)
    done = 0
    for thread in range(threads):
        for place in range(len(work)):
            if owners[place] == thread:
                which[done] = place
                done += 1
        starts[thread + 1] = done
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
    which, starts = share_out(np.array(work, dtype=np.int64), threads)
    with _lock:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            return parallel(which, starts, arguments)
        finally:
            numba.set_num_threads(before)
