"""The vectors of the distinct categories that ids ask for, as one differentiable function: of one
table, or of a stack.

What is done with them, lookups of every shape, pooling, weights, is torch's own work on a small
matrix, with torch's own meaning.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mlet.engine.batch import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.choice import FAST_DTYPES, choose_backend
from mlet.engine.factored_gradient import FactoredGradient
from mlet.engine.rounding import compute_dtype

#: Of tables and ids. Kernels of our own have all but float64, which the reference computes.
_SERVED = (*FAST_DTYPES, torch.float64, torch.int32, torch.int64)


def engine_serves(*tensors: Tensor) -> bool:
    """Whether plain torch is at work on plain tensors, so that kernels of our own may be.

    Not where operations are traced or exported (``torch.compile``, ``torch.export``,
    ``torch.jit.trace``), transformed (``torch.func``), differentiated forwards, or replaced (fake
    and meta tensors, subclasses of tensors as DTensor, modes that count or record); nor for tables
    of dtypes that no kernel has. Second derivatives are served.
    """
    # Some of this has no public name; torch's own custom functions ask the same.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._are_functorch_transforms_active() or _get_current_dispatch_mode() is not None:
        return False
    return all(_is_plain(tensor) for tensor in tensors)


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.dtype in _SERVED
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and forward_ad.unpack_dual(tensor).tangent is None
    )


class _Vectors(torch.autograd.Function):
    """``table[rows] @ projection``, or of each lookup its own; backward onto those rows.

    The rows (R × k) are kept for the backward pass, which would else wait for memory once more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        projection: Tensor,
        distinct: Distinct,
        each: bool,
        sparse: bool,
        sink: list[RowGradient] | None,
        stack: TableStack | None,
    ) -> Tensor:
        rows = table.index_select(0, distinct.rows).to(compute_dtype(table))
        ctx.save_for_backward(rows, projection)
        ctx.table = table if ctx.needs_input_grad[0] else None
        ctx.distinct, ctx.each, ctx.sparse = distinct, each, sparse
        ctx.sink, ctx.stack = sink, stack
        vectors = _projected(rows, projection.to(rows.dtype), distinct.starts)
        return vectors.index_select(0, distinct.slots) if each else vectors

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, projection = ctx.saved_tensors
        distinct: Distinct = ctx.distinct
        again = torch.is_grad_enabled()  # the gradient's own is asked for
        if ctx.each:
            grad = _sums(grad, distinct, again)
        if distinct.touched is not None:
            grad = grad.masked_fill(~distinct.touched.unsqueeze(1), 0.0)
        if not again and (
            ctx.sink is not None or (ctx.stack is not None and ctx.table is not None)
        ):
            sums = grad.to(rows.dtype).contiguous()
            gradient = RowGradient(distinct.rows, distinct.starts, sums, distinct.touched)
            if ctx.sink is not None:
                ctx.sink.append(gradient)
                return _NOTHING
            of_stack = projection if projection.dim() == 3 else projection.unsqueeze(0)
            factored = FactoredGradient(ctx.table, of_stack, gradient, ctx.stack)
            return factored, _projection_grad(ctx, rows, sums, projection), *_NOTHING[2:]
        if again and ctx.table is not None:
            rows = ctx.table.index_select(0, distinct.rows).to(rows.dtype)
        table_grad = None
        if ctx.needs_input_grad[0]:
            wide = projection.to(grad.dtype).transpose(-1, -2)
            rows_grad = _projected(grad, wide, distinct.starts)
            table_grad = _scattered(rows_grad.to(ctx.table.dtype), ctx.table, distinct, ctx.sparse)
        return table_grad, _projection_grad(ctx, rows, grad, projection), *_NOTHING[2:]


_NOTHING = (None,) * 7


def _projection_grad(ctx: Any, rows: Tensor, grad: Tensor, projection: Tensor) -> Tensor | None:
    if not ctx.needs_input_grad[1]:
        return None
    if projection.dim() == 2:
        return _product(rows.t(), grad).to(projection.dtype)
    segments = pairwise(ctx.distinct.starts)
    parts = [_product(rows[low:high].t(), grad[low:high]) for low, high in segments]
    return torch.stack(parts).to(projection.dtype)


def _projected(rows: Tensor, projection: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Rows (R × k) times the one projection, or times that of the table each is of (T × k × d)."""
    if projection.dim() == 2:
        return _product(rows, projection)
    segments = enumerate(pairwise(starts))
    return torch.cat([_product(rows[low:high], projection[t]) for t, (low, high) in segments])


def _product(one: Tensor, other: Tensor) -> Tensor:
    """torch's lookups stay out of autocast; a product would be rounded to its lower precision."""
    device = one.device.type
    if not torch.is_autocast_enabled(device):
        return one @ other
    with torch.autocast(device, enabled=False):
        return one @ other


def _sums(grad: Tensor, distinct: Distinct, again: bool) -> Tensor:
    """Upstream gradients (V × d) summed over each row's lookups."""
    count = len(distinct.rows)
    if again:
        return grad.new_zeros(count, grad.shape[1]).index_add(0, distinct.slots, grad)
    lookups = _one_table(distinct.slots)
    upstream = grad.to(compute_dtype(grad)).unsqueeze(1)
    return choose_backend(grad).sum_gradients(upstream, lookups, distinct).to(grad.dtype)


def _scattered(rows_grad: Tensor, table: Tensor, distinct: Distinct, sparse: bool) -> Tensor:
    """A gradient of some rows as one of the table."""
    if not sparse:
        return torch.zeros_like(table).index_add_(0, distinct.rows, rows_grad)
    rows = distinct.rows
    if distinct.touched is not None and not bool(distinct.touched.all()):
        # Rows not asked for are no part of a sparse gradient: some optimizers move every row in it.
        rows, rows_grad = rows[distinct.touched], rows_grad[distinct.touched]
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), rows_grad, table.shape, check_invariants=False
    )


def each_projected(table: Tensor, projection: Tensor, distinct: Distinct) -> Tensor:
    """The vector of each lookup (V × d), in the dtype of computation: each distinct row (of
    Σn × k) times its table's projection (T × k × d), once."""
    rows = table.index_select(0, distinct.rows).to(compute_dtype(table))
    vectors = _projected(rows, projection.to(rows.dtype), distinct.starts)
    return vectors.index_select(0, distinct.slots)


def sums_of_each(grad: Tensor, distinct: Distinct) -> Tensor:
    """Gradients of lookups (V × d) summed over each distinct row's (R × d)."""
    return _sums(grad, distinct, again=False).contiguous()


def _one_table(ids: Tensor) -> Lookups:
    return Lookups(ids, (0, len(ids)), len(ids), (None,), (False,))


def distinct_vectors(
    table: Tensor,
    projection: Tensor,
    ids: Tensor,
    stack: TableStack,
    *,
    frozen_row: int | None = None,
    sparse: bool = False,
    sink: list[RowGradient] | None = None,
    factored: bool = False,
    each: bool = False,
) -> tuple[Tensor, Tensor]:
    """Vectors of one two-layer table, each once.

    Args:
        table: W2 (n × k).
        projection: W1 (k × d).
        ids: of any shape, int32 or int64.
        stack: the one table, for errors.
        frozen_row: a row that gives no gradient to either factor.
        sparse: give ``table`` a sparse gradient, of the other rows that were asked for.
        sink: put the gradient here instead, as a `RowGradient`, for both factors.
        factored: give ``table`` a `FactoredGradient`.
        each: return each id's own vector (… × d) rather than the distinct ones.

    Returns:
        The vectors (R × d), in the projection's dtype, and of each id (of the shape of ``ids``) the
        place of its own among the distinct ones, int32 or int64.

    Raises:
        IndexError: an id is outside the table.
    """
    lookups = _one_table(ids.reshape(-1).long())
    backend = choose_backend(table)
    found = backend.find_distinct(table, projection.unsqueeze(0), lookups, stack)
    if frozen_row is not None:
        trained = found.rows != frozen_row
        touched = trained if found.touched is None else trained & found.touched
        found = replace(found, touched=touched)
    vectors: Tensor = _Vectors.apply(  # type: ignore[no-untyped-call]
        table, projection, found, each, sparse, sink, stack if factored else None
    )
    if each:
        return vectors.view(*ids.shape, vectors.shape[1]).to(projection.dtype), found.slots
    return vectors.to(projection.dtype), found.slots.long().view(ids.shape)


def vectors_of_each(
    table: Tensor,
    projection: Tensor,
    lookups: Lookups,
    stack: TableStack,
    *,
    sparse: bool = False,
    sink: list[RowGradient] | None = None,
    factored: bool = False,
) -> Tensor:
    """Vectors (V × d) of the lookups of a stack of two-layer tables, each projected once.

    Args:
        table: W2 (Σn × k) of T tables.
        projection: W1 (T × k × d).
        lookups: the ids; what they say of bags is not asked.
        stack, sparse, sink, factored: as of `mlet.engine.look_up`.

    Returns:
        The vectors in the projection's dtype.

    Raises:
        IndexError: an id is outside its table.
    """
    found = choose_backend(table).find_distinct(table, projection, lookups, stack)
    vectors: Tensor = _Vectors.apply(  # type: ignore[no-untyped-call]
        table, projection, found, True, sparse, sink, stack if factored else None
    )
    return vectors.to(projection.dtype)
