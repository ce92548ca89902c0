"""Where a table that is ``sparse`` can have a sparse gradient."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mlet.engine import RowGradient


class _Table(Protocol):
    """What is looked up, and who trains it."""

    sparse: bool
    row_gradients: list[RowGradient] | None
    factored_gradient: bool

    @property
    def stacked(self) -> Tensor: ...


def stays_sparse(table: _Table) -> bool:
    """Whether it has a sparse gradient: if it is ``sparse``, and no `DistributedDataParallel` is to
    average it, which does so with sparse gradients of torch's own embedding classes alone, and
    breaks off at others.

    There a table has a dense gradient, which all optimizers but SparseAdam take, and a warning says
    what averages rows: `mlet.convert` and `mlet.optim.fused`, which keep tables out of its hands.
    """
    ours = table.factored_gradient or table.row_gradients is not None
    if not table.sparse or ours or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return table.sparse
    wrapper = DistributedDataParallel._active_ddp_module
    if wrapper is None or is_left_out(table.stacked, wrapper):
        return True
    warnings.warn(
        "DistributedDataParallel averages the gradient of a sparse=True table as a dense one, "
        "of all its rows: convert the very model that is wrapped, once processes are initialised, "
        "or make its optimizer with mlet.optim.fused, and they exchange rows that they looked up",
        UserWarning,
        stacklevel=4,
    )
    return False


def is_left_out(parameter: Tensor, wrapper: DistributedDataParallel) -> bool:
    """Whether a parameter of the wrapped model is none that the wrapper averages."""
    return any(
        own is parameter and name in wrapper.parameters_to_ignore
        for name, own in wrapper.module.named_parameters()
    )
