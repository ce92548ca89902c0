"""Compiled kernels are kept on disk: a second process loads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from mlet.engine.cpu import distinct, parallel
from mlet.nn import Field, FieldEmbedding
from mlet.optim import FusedAdagrad

torch.set_num_threads(2)
layer = FieldEmbedding([Field("a", 9, 2, 4), Field("b", 5_000, 2, 4)])
ids = torch.stack([torch.arange(2_000) % 9, torch.arange(2_000)], dim=1)
optimizer = FusedAdagrad(layer)
layer(ids).sum().backward()
optimizer.step()
optimizer.detach()
layer(ids).sum().backward()
names = ("find_distinct", "embed", "sum_gradients", "factor_gradients", "update")
FieldEmbedding([Field("a", 5_000, 2, 4)])(ids[:, 1:])
for kernel in (*(getattr(parallel, name) for name in names), distinct.find_distinct_of_one):
    print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to work in parallel")
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    # A folder of its own: what other tests have compiled does not help.
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "2"}

    def counts() -> list[tuple[int, int]]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [(int(a), int(b)) for a, b in map(str.split, done.stdout.splitlines())]

    assert counts() == [(0, 1)] * 6, "every kernel is compiled once"
    assert counts() == [(1, 0)] * 6, "and never again"
