"""The vectors of the distinct categories that ids ask for, as one differentiable function.

What is done with them, lookups of every shape, pooling, weights, is torch's own work on a small
matrix, with torch's own meaning.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mlet.engine.backend import Backend
from mlet.engine.batch import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.choice import FAST_DTYPES, choose_backend
from mlet.engine.function import factor_gradients
from mlet.engine.rounding import compute_dtype

#: Of tables and ids. Kernels of our own have all but float64, which the reference computes.
_SERVED = (*FAST_DTYPES, torch.float64, torch.int32, torch.int64)
#: Rows of one table that a thread takes at a time.
_SEGMENT = 1_024


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
    """``table[rows] @ projection``; backward onto those rows."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        projection: Tensor,
        distinct: Distinct,
        backend: Backend,
        sparse: bool,
        sink: list[RowGradient] | None,
    ) -> Tensor:
        ctx.save_for_backward(table, projection)
        ctx.distinct, ctx.backend, ctx.sparse, ctx.sink = distinct, backend, sparse, sink
        return backend.project(table, _for_each_segment(projection, distinct), distinct)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, projection = ctx.saved_tensors
        distinct: Distinct = ctx.distinct
        kept = distinct.touched
        if kept is not None:
            grad = grad * kept.unsqueeze(1)
        if torch.is_grad_enabled():  # of a gradient that is to be differentiated itself
            rows = table.index_select(0, distinct.rows)
            rows_grad = grad.to(table.dtype) @ projection.to(table.dtype).t()
            table_grad = torch.zeros_like(table).index_add(0, distinct.rows, rows_grad)
            projection_grad = rows.to(projection.dtype).t() @ grad.to(projection.dtype)
            return table_grad, projection_grad, None, None, None, None
        gradient = RowGradient(
            distinct.rows, distinct.starts, grad.to(compute_dtype(table)).contiguous(), kept
        )
        if ctx.sink is not None:
            ctx.sink.append(gradient)
            return None, None, None, None, None, None
        segments = _for_each_segment(projection, distinct)
        table_grad, projection_grad = factor_gradients(
            table, segments, gradient, ctx.backend, sparse=ctx.sparse
        )
        assert projection_grad is not None
        return table_grad, projection_grad.sum(0), None, None, None, None


def distinct_vectors(
    table: Tensor,
    projection: Tensor,
    ids: Tensor,
    stack: TableStack,
    *,
    frozen_row: int | None = None,
    sparse: bool = False,
    sink: list[RowGradient] | None = None,
) -> tuple[Tensor, Tensor]:
    """Vectors of one two-layer table, each once.

    Args:
        table: W2 (n × k).
        projection: W1 (k × d).
        ids: of any shape, int32 or int64.
        stack: the one table, for errors.
        frozen_row: a row that gives no gradient to either factor.
        sparse: give ``table`` a sparse gradient, of the other rows that were asked for.
        sink: put the gradient here instead, as a `RowGradient` of one table in segments.

    Returns:
        The vectors (R × d), in the projection's dtype, and of each id (of the shape of ``ids``) the
        place of its own, int64.

    Raises:
        IndexError: an id is outside the table.
    """
    flat = ids.reshape(-1).long()
    backend = choose_backend(table)
    lookups = Lookups(flat, (0, len(flat)), len(flat), (None,), (False,))
    found = backend.find_distinct(table, projection.unsqueeze(0), lookups, stack)
    touched = found.touched
    if frozen_row is not None:
        others = found.rows != frozen_row
        touched = others if touched is None else touched & others
    distinct = Distinct(found.rows, _segments(len(found.rows)), found.slots, touched)
    vectors: Tensor = _Vectors.apply(table, projection, distinct, backend, sparse, sink)  # type: ignore[no-untyped-call]
    return vectors.to(projection.dtype), found.slots.long().view(ids.shape)


def _segments(rows: int) -> tuple[int, ...]:
    """Where each segment begins: as if they were tables, for threads to share out.

    They go by the number of rows alone, so that sums do not depend on the threads.
    """
    return (*range(0, rows, _SEGMENT), rows) if rows else (0, 0)


def _for_each_segment(projection: Tensor, distinct: Distinct) -> Tensor:
    return projection.unsqueeze(0).expand(len(distinct.starts) - 1, *projection.shape)
