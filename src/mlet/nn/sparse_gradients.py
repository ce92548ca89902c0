"""Where a table that is ``sparse`` can have a sparse gradient."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch.nn.parallel import DistributedDataParallel

from mlet.engine import RowGradient


class _Table(Protocol):
    """What is looked up, and who trains it."""

    sparse: bool
    row_gradients: list[RowGradient] | None
    factored_gradient: bool


def stays_sparse(table: _Table) -> bool:
    """Whether it has a sparse gradient: if it is ``sparse``, and not in a forward pass under
    `DistributedDataParallel`, which averages sparse gradients of torch's own embedding classes
    alone, and breaks off at others.

    There a table has a dense gradient, which all optimizers but SparseAdam take, and a warning says
    what averages rows: `mlet.optim.fused`, which keeps tables out of the wrapper's hands.
    """
    ours = table.factored_gradient or table.row_gradients is not None
    if not table.sparse or ours or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return table.sparse
    if DistributedDataParallel._active_ddp_module is None:
        return True
    warnings.warn(
        "DistributedDataParallel averages the gradient of a sparse=True table as a dense one, "
        "of all its rows: make the optimizer with mlet.optim.fused before the model is wrapped, "
        "and processes exchange only the rows that they looked up",
        UserWarning,
        stacklevel=4,
    )
    return False
