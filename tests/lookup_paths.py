"""The ways a two-layer layer looks rows up, for tests that compare each with torch's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import pytest
import torch

from mlet.engine import use_backend
from mlet.nn import two_layer

#: By torch's operations alone, as under ``torch.compile``; by distinct rows, the engine's reference
#: in float64; and its CPU kernels.
PATHS = ["torch's operations", "reference", "cpu"]

Tolerance: TypeAlias = dict[str, float]


@contextmanager
def way_of(path: str) -> Iterator[tuple[torch.dtype, Tolerance, Tolerance]]:
    """Force a way; the dtype to test it in, and how near outputs and gradients then are."""
    if path == "cpu":
        near = {"rtol": 1e-4, "atol": 2e-5}
        with use_backend("cpu"):
            yield torch.float32, near, near
        return
    near = {"rtol": 1e-10, "atol": 1e-12}, {"rtol": 1e-9, "atol": 1e-12}
    with pytest.MonkeyPatch.context() as patch:
        if path == PATHS[0]:
            patch.setattr(two_layer, "engine_serves", lambda *tensors: False)
        yield torch.float64, *near
