"""The interface of the engine's backends, and the choice among them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from mlet.engine.lookups import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.rules import Rule

BackendName = Literal["torch", "cpu", "cuda"]

#: Dtypes of tables that the fast backends read and write; they compute in float32.
FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Backend(Protocol):
    """The five steps of training a stack of T tables.

    ``table`` is the stacked matrix: W2 (Σn × k) of two-layer tables, with ``projection`` W1
    (T × k × d); or W (Σn × d) of ordinary ones, with ``projection`` None. Results are
    in `compute_dtype`.
    """

    def find_distinct(self, lookups: Lookups, stack: TableStack, row_cost: int) -> Distinct:
        """The distinct rows.

        ``row_cost`` is the number of multiply-adds of a row's projection (k·d; of ordinary tables
        d): where listing a whole table is cheaper than telling its rows apart, it is listed whole.

        Raises:
            IndexError: an id outside its table; names field, id and table size.
        """

    def embed(
        self, table: Tensor, projection: Tensor | None, lookups: Lookups, distinct: Distinct
    ) -> Tensor:
        """Outputs (B, T, d): rows are projected once, then handed to their lookups, or pooled."""

    def sum_gradients(self, grad: Tensor, lookups: Lookups, distinct: Distinct) -> Tensor:
        """(R × d): upstream gradients (B, T, d) summed over each row's lookups."""

    def factor_gradients(
        self, table: Tensor, projection: Tensor, gradient: RowGradient
    ) -> tuple[Tensor, Tensor]:
        """``∂W2`` of the gradient's rows (R × k), and ``∂W1`` (T × k × d)."""

    def update(
        self,
        table: Tensor,
        projection: Tensor | None,
        gradient: RowGradient,
        rule: Rule,
        state: tuple[Tensor, ...],
    ) -> Tensor | None:
        """Apply ``rule`` to the touched rows of ``table`` and to their state, in place.

        16-bit tables are rounded stochastically. Returns ``∂W1`` at the rows' old values, None for
        ordinary tables.
        """


def compute_dtype(table: Tensor) -> torch.dtype:
    """What a table is computed in: float32 where it is kept in 16 bits, else its own dtype."""
    return torch.float32 if table.dtype in (torch.bfloat16, torch.float16) else table.dtype


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
        from mlet.engine.cpu_backend import CPUBackend

        return CPUBackend()
    if name == "cuda":
        from mlet.engine.cuda_backend import CUDABackend

        return CUDABackend()
    from mlet.engine.torch_backend import TorchBackend

    return TorchBackend()
