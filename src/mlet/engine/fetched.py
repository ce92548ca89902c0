"""Lookups of rows whose vectors are there already, as those that other processes have looked up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlet.engine.batch import Distinct, Lookups, RowGradient
from mlet.engine.choice import choose_backend


@dataclass(frozen=True)
class FetchedRows:
    """The vectors of what a batch asks of a stack.

    Attributes:
        lookups: what it asks.
        distinct: the R distinct rows of that, of the whole stack, wherever they are.
        vectors: (R × d), projected; of rows that are not touched anything.
    """

    lookups: Lookups
    distinct: Distinct
    vectors: Tensor

    def hand_out(self, table: Tensor, sink: list[RowGradient] | None) -> Tensor:
        """Outputs (B, T, d) of the batch.

        Args:
            table: whose rows they are; it is asked whether it needs a gradient, no more.
            sink: where the backward pass puts that of ``vectors``, as a `RowGradient`.
        """
        out: Tensor = _HandOut.apply(table, self, sink)  # type: ignore[no-untyped-call]
        return out


class _HandOut(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, fetched: FetchedRows, sink: list[RowGradient] | None
    ) -> Tensor:
        ctx.fetched, ctx.sink = fetched, sink
        vectors = fetched.vectors
        places = torch.arange(len(vectors), device=vectors.device)
        distinct = replace(fetched.distinct, rows=places)
        return choose_backend(vectors).embed(vectors, None, fetched.lookups, distinct)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        fetched = ctx.fetched
        if ctx.sink is None:
            raise RuntimeError("fetched rows are trained by a fused optimizer, and there is none")
        distinct = fetched.distinct
        backend = choose_backend(fetched.vectors)
        sums = backend.sum_gradients(grad, fetched.lookups, distinct)
        ctx.sink.append(RowGradient(distinct.rows, distinct.starts, sums, distinct.touched))
        return None, None, None
