"""The engine as one differentiable function."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlet.engine.batch import Lookups, RowGradient, TableStack
from mlet.engine.choice import choose_backend
from mlet.engine.factored_gradient import FactoredGradient
from mlet.engine.vectors import vectors_of_each


class _Lookup(torch.autograd.Function):
    """Forward by distinct rows; backward onto distinct rows, never a dense Σn × k gradient
    unless a dense one was asked for, never a k-wide vector for each lookup."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        projection: Tensor | None,
        lookups: Lookups,
        stack: TableStack,
        sparse: bool,
        sink: list[RowGradient] | None,
        factored: bool,
    ) -> Tensor:
        backend = choose_backend(table)
        distinct = backend.find_distinct(table, projection, lookups, stack)
        # Saving them lets autograd notice if they are changed before the backward pass. Bags are
        # read again there, as positions in memory: from a copy, which nobody else writes to.
        ctx.save_for_backward(table, projection, *lookups.offsets)
        ctx.backend, ctx.lookups, ctx.distinct = backend, lookups.with_own_offsets(), distinct
        ctx.sparse, ctx.sink, ctx.stack = sparse, sink, stack if factored else None
        return backend.embed(table, projection, lookups, distinct)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, projection, *_ = ctx.saved_tensors
        distinct, backend = ctx.distinct, ctx.backend
        sums = backend.sum_gradients(grad, ctx.lookups, distinct)
        gradient = RowGradient(distinct.rows, distinct.starts, sums, distinct.touched)
        if ctx.sink is not None:
            ctx.sink.append(gradient)
            return None, None, None, None, None, None, None
        if ctx.stack is not None:
            factored = FactoredGradient(table, projection, gradient, ctx.stack)
            return factored, _projection_grad(table, projection, gradient), *(None,) * 5
        # Rows not asked for are no part of a sparse gradient: some optimizers move every row in it.
        gradient = gradient.compact().sorted()
        rows_grad, projection_grad = gradient.sums, None
        if projection is not None:
            rows_grad, projection_grad = backend.factor_gradients(table, projection, gradient)
            projection_grad = projection_grad.to(projection.dtype)
        rows_grad = rows_grad.to(table.dtype)
        if ctx.sparse:
            table_grad = torch.sparse_coo_tensor(
                gradient.rows.unsqueeze(0),
                rows_grad,
                table.shape,
                is_coalesced=True,
                check_invariants=False,
            )
        else:
            table_grad = torch.zeros_like(table).index_copy_(0, gradient.rows, rows_grad)
        return table_grad, projection_grad, None, None, None, None, None


def _projection_grad(
    table: Tensor, projection: Tensor | None, gradient: RowGradient
) -> Tensor | None:
    """``∂W1 = W2ᵀ G``, table by table."""
    if projection is None:
        return None
    rows = table.index_select(0, gradient.rows).to(gradient.sums.dtype)
    grad = gradient.sums.new_empty(projection.shape)
    for place, (low, high) in enumerate(pairwise(gradient.starts)):
        torch.mm(rows[low:high].t(), gradient.sums[low:high], out=grad[place])
    return grad.to(projection.dtype)


def look_up(
    table: Tensor,
    projection: Tensor | None,
    lookups: Lookups,
    stack: TableStack,
    *,
    sparse: bool = True,
    sink: list[RowGradient] | None = None,
    factored: bool = False,
) -> Tensor:
    """Embed a batch's ids in a stack of T tables.

    Args:
        table: W2 (Σn × k) of two-layer tables, or W (Σn × d) of ordinary ones.
        projection: W1 (T × k × d); None for ordinary tables.
        lookups: the ids; what is pooled.
        stack: which rows are whose.
        sparse: give ``table`` a sparse gradient, of the touched rows; a dense one otherwise.
        sink: put the gradient here, as a `RowGradient`, and leave both ``.grad`` alone: for an
            optimizer that applies it in one pass (`mlet.optim`).
        factored: give ``table`` a `FactoredGradient`.

    Returns:
        (B, T, d), in ``table``'s dtype, float32 for 16-bit tables; or of each lookup (V, d).

    Raises:
        IndexError: an id outside its table.
        ValueError: the matrices have not the shapes of the stack, as after ``table.data = …``.
        RuntimeError: on a second derivative; the gradient is exact, but is not differentiable. On a
            backward pass after a factor or the offsets of bags were changed in place.
    """
    rows, tables = stack.first_rows[-1], len(stack)
    fits = table.dim() == 2 and len(table) == rows
    if projection is not None:
        fits = fits and projection.dim() == 3
        fits = fits and projection.shape[:2] == (tables, table.shape[1])
    if not fits:
        shapes = [tuple(matrix.shape) for matrix in (table, projection) if matrix is not None]
        raise ValueError(
            f"tables {', '.join(stack.names)} have {rows} rows in all, but their matrices have "
            f"the shapes {', '.join(map(str, shapes))}"
        )
    if lookups.each:
        if projection is None:
            raise ValueError("lookups of each id by itself are of two-layer tables")
        return vectors_of_each(
            table, projection, lookups, stack, sparse=sparse, sink=sink, factored=factored
        )
    out: Tensor = _Lookup.apply(  # type: ignore[no-untyped-call]
        table, projection, lookups, stack, sparse, sink, factored
    )
    return out
