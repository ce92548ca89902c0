"""The engine as one differentiable function."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlet.engine.backend import Backend
from mlet.engine.batch import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.choice import choose_backend
from mlet.engine.factored_gradient import FactoredGradient
from mlet.engine.vectors import each_projected, sums_of_each, vectors_of_each


@dataclass(frozen=True)
class Asked:
    """What a batch asks of a stack of tables, found in the forward pass for both."""

    backend: Backend
    lookups: Lookups
    distinct: Distinct

    @classmethod
    def find(
        cls, table: Tensor, projection: Tensor | None, lookups: Lookups, stack: TableStack
    ) -> Asked:
        """Of (Σn × k) and (T × k × d), or (Σn × d) alone.

        Raises:
            IndexError: an id outside its table.
        """
        backend = choose_backend(table)
        return cls(backend, lookups, backend.find_distinct(table, projection, lookups, stack))

    def vectors(self, table: Tensor, projection: Tensor | None) -> Tensor:
        """(B, T, d), or of each lookup (V, d), in the dtype of computation."""
        if self.lookups.each:
            assert projection is not None
            return each_projected(table, projection, self.distinct)
        return self.backend.embed(table, projection, self.lookups, self.distinct)

    def to_keep(self) -> Asked:
        """For the backward pass: bags are read again there, as positions in memory, so from a copy,
        which nobody else writes to."""
        return Asked(self.backend, self.lookups.with_own_offsets(), self.distinct)

    def gradient(self, grad: Tensor) -> RowGradient:
        """Of the product, from that of `vectors`."""
        distinct = self.distinct
        if self.lookups.each:
            sums = sums_of_each(grad, distinct)
        else:
            sums = self.backend.sum_gradients(grad, self.lookups, distinct)
        return RowGradient(distinct.rows, distinct.starts, sums, distinct.touched)


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
        asked = Asked.find(table, projection, lookups, stack)
        # Saving them lets autograd notice if they are changed before the backward pass.
        ctx.save_for_backward(table, projection, *lookups.offsets)
        ctx.asked = asked.to_keep()
        ctx.sparse, ctx.sink, ctx.stack = sparse, sink, stack if factored else None
        return asked.vectors(table, projection)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, projection, *_ = ctx.saved_tensors
        gradient = ctx.asked.gradient(grad)
        if ctx.sink is not None:
            ctx.sink.append(gradient)
            return None, None, None, None, None, None, None
        if ctx.stack is not None:
            factored = FactoredGradient(table, projection, gradient, ctx.stack)
            return factored, projection_gradient(table, projection, gradient), *(None,) * 5
        # Rows not asked for are no part of a sparse gradient: some optimizers move every row in it.
        gradient = gradient.compact().sorted()
        rows_grad, projection_grad = gradient.sums, None
        if projection is not None:
            rows_grad, projection_grad = ctx.asked.backend.factor_gradients(
                table, projection, gradient
            )
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


def projection_gradient(
    table: Tensor, projection: Tensor | None, gradient: RowGradient
) -> Tensor | None:
    """``∂W1 = W2ᵀ G`` (T × k × d), table by table; None of ordinary tables."""
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
