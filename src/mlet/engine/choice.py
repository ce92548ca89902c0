"""The choice among the backends."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mlet.engine.backend import Backend

BackendName = Literal["torch", "cpu", "cuda"]

#: Dtypes of tables that the fast backends read and write; they compute in float32.
FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_forced: ContextVar[BackendName | None] = ContextVar("forced backend", default=None)


@contextmanager
def use_backend(name: BackendName) -> Iterator[None]:
    """Within the context, use this backend: for tests and measurements.

    Unforced, the fastest that supports the table is taken: ``cpu`` or ``cuda`` for float32 and
    16-bit tables, ``torch`` for all others.
    """
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose_backend(table: Tensor) -> Backend:
    """The backend for a table: see `use_backend`."""
    name = _forced.get()
    if name is None:
        fast = table.dtype in FAST_DTYPES
        if table.device.type == "cpu" and fast:
            name = "cpu"
        elif table.device.type == "cuda" and fast and _has_triton():
            name = "cuda"
        else:
            name = "torch"
    return _load(name)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _load(name: BackendName) -> Backend:
    # Imported on first use: Numba and Triton take their time.
    if name == "cpu":
        from mlet.engine.cpu.backend import CPUBackend

        return CPUBackend()
    if name == "cuda":
        from mlet.engine.cuda.backend import CUDABackend

        return CUDABackend()
    from mlet.engine.reference import ReferenceBackend

    return ReferenceBackend()
