"""Worker processes: quick to start, able to do all that a process of their own could."""

from __future__ import annotations

import multiprocessing
import os
import sys

import pytest

from mlet.experiments.workers import worker_pool


def imported() -> set[str]:
    return set(sys.modules)


def kernels_may_use_threads() -> bool:
    from mlet.engine import workers

    return workers._process == os.getpid()


@pytest.mark.slow
def test_workers_have_imported_what_training_needs_and_may_use_threads() -> None:
    with worker_pool(1) as pool:
        first = pool.submit(imported).result()
        if "forkserver" in multiprocessing.get_all_start_methods():
            assert {"torch._dynamo", "sklearn.metrics", "numba", "mlet.training"} <= first
        assert pool.submit(kernels_may_use_threads).result()
