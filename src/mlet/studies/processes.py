"""Processes that train runs beside one another."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext

from mlet.errors import RunError

#: What a worker imports sooner or later; torch.optim imports torch._dynamo when it is first used.
#: Not the CPU kernels: they use no threads in a fork of the process that imported them.
_NEEDED = ("mlet.training", "numba", "sklearn.metrics", "torch._dynamo")


def worker_pool(jobs: int) -> ProcessPoolExecutor:
    """A pool whose processes end with this one, even if it is killed.

    Raises:
        RunError: no process can start.
    """
    pool = ProcessPoolExecutor(jobs, mp_context=_context(), initializer=_end_with_parent)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise RunError(
            "no worker process can start (what it said stands above); a script that trains in "
            'several processes calls mlet under `if __name__ == "__main__":`'
        ) from None
    return pool


def usable_cores() -> int:
    """The cores that this process may use: a container is often given a few of many."""
    # Imported on use, as scikit-learn is.
    import joblib

    return int(joblib.cpu_count())


def _context() -> BaseContext:
    """How workers start: not as forks of this process, as torch's thread pools survive no fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    # One process that has imported what training needs, and has done nothing else, is forked for
    # every worker: they start at once and share its memory.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_NEEDED))
    return context


def _end_with_parent() -> None:
    """In a worker: without this, it would wait for work from a process that is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
