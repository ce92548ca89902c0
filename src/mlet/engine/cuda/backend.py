"""The engine on CUDA devices: Triton kernels for what torch would do in many passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import triton
from torch import Tensor

from mlet.engine.batch import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.cuda import kernels
from mlet.engine.reference import ReferenceBackend
from mlet.engine.rules import Rule

#: Rows of a block, and programs that share one table's blocks.
_BLOCK, _PROGRAMS = 32, 16
#: Lookups that are added in one go.
_LOOKUPS = 16
#: A stack is listed whole if its rows' projection takes at most this many multiply-adds for each
#: lookup: less than waiting for the device to report how many rows are distinct.
_LOOKUP_COST = 4_096
#: Smallest side of a matrix product in Triton.
_SIDE = 16


@dataclass(frozen=True)
class _Sorted(Distinct):
    """With the lookups by row.

    Attributes:
        order: (V,) the lookups, ordered by row.
        firsts: (R + 1,) where in them each row's begin.
    """

    order: Tensor = field(kw_only=True)
    firsts: Tensor = field(kw_only=True)


class CUDABackend(ReferenceBackend):
    """See `mlet.engine.backend.Backend`. Tables in float32, bfloat16 or float16."""

    def find_distinct(
        self, table: Tensor, projection: Tensor | None, lookups: Lookups, stack: TableStack
    ) -> _Sorted:
        """Sorted distinct rows, with each row's lookups beside them; a small stack whole."""
        row_cost = table.shape[1] * (1 if projection is None else projection.shape[2])
        places = self._stacked_rows(lookups, stack)
        device = places.device
        ascending, order = torch.sort(places, stable=True)
        total = stack.first_rows[-1]
        if total * row_cost <= len(places) * _LOOKUP_COST:
            rows = torch.arange(total, device=device)
            firsts = torch.searchsorted(ascending, torch.arange(total + 1, device=device))
            starts, slots, touched = tuple(stack.first_rows), places, firsts.diff() > 0
        else:
            new = torch.ones_like(ascending, dtype=torch.bool)
            new[1:] = ascending[1:] != ascending[:-1]
            firsts = new.nonzero().squeeze(1)
            rows, touched = ascending[firsts], None
            firsts = torch.cat([firsts, firsts.new_tensor([len(places)])])
            slots = torch.empty_like(places)
            slots[order] = new.cumsum(0) - 1
            starts = stack.starts_in(rows)
        return _Sorted(rows, starts, slots, touched, order=order, firsts=firsts)

    def _project(self, table: Tensor, projection: Tensor | None, distinct: Distinct) -> Tensor:
        if projection is None:
            return super()._project(table, projection, distinct)
        tables, k, d = projection.shape
        vectors = torch.empty(len(distinct.rows), d, dtype=torch.float32, device=table.device)
        if len(vectors):
            kernels.project[tables, _programs(distinct.starts)](
                table,
                distinct.rows,
                _on_device(distinct.starts, table),
                projection.contiguous(),
                vectors,
                k,
                d,
                BLOCK=_BLOCK,
                BLOCK_K=_padded(k),
                BLOCK_D=_padded(d),
            )
        return vectors

    def sum_gradients(self, grad: Tensor, lookups: Lookups, distinct: Distinct) -> Tensor:
        """Each row's lookups added up in their order."""
        assert isinstance(distinct, _Sorted)
        d = grad.shape[2]
        sums = torch.empty(len(distinct.rows), d, dtype=torch.float32, device=grad.device)
        weights = lookups.weights(sums.dtype)
        if len(sums):
            kernels.sum_gradients[(len(sums),)](
                grad.contiguous(),
                distinct.order,
                distinct.firsts,
                lookups.outputs(),
                sums if weights is None else weights,
                sums,
                d,
                WEIGHTED=weights is not None,
                BLOCK_L=_LOOKUPS,
                BLOCK_D=triton.next_power_of_2(d),
            )
        return sums

    def factor_gradients(
        self, table: Tensor, projection: Tensor, gradient: RowGradient
    ) -> tuple[Tensor, Tensor]:
        """Both factors' gradients in one pass over the rows."""
        rows_grad = torch.empty(
            len(gradient.rows), table.shape[1], dtype=torch.float32, device=table.device
        )
        projection_grad = self._pass(
            table,
            projection,
            gradient,
            rows_grad=rows_grad,
        )
        assert projection_grad is not None
        return rows_grad, projection_grad

    def update(
        self,
        table: Tensor,
        projection: Tensor | None,
        gradient: RowGradient,
        rule: Rule,
        state: tuple[Tensor, ...],
        *,
        projection_grad: bool = True,
    ) -> Tensor | None:
        """Factor gradients and the rule in one pass over the rows."""
        result = self._pass(
            table, projection, gradient, rule=rule, state=state, projection_grad=projection_grad
        )
        # torch cannot see that its memory was written to; autograd relies on the count.
        torch.autograd.graph.increment_version([table, *state])
        return result

    @staticmethod
    def _pass(
        table: Tensor,
        projection: Tensor | None,
        gradient: RowGradient,
        *,
        rows_grad: Tensor | None = None,
        rule: Rule | None = None,
        state: tuple[Tensor, ...] = (),
        projection_grad: bool = True,
    ) -> Tensor | None:
        """Apply a rule, or write the rows' gradient to ``rows_grad``; returns ``∂W1``."""
        tables, width, d = len(gradient.starts) - 1, table.shape[1], gradient.sums.shape[1]
        programs = _programs(gradient.starts)
        partial = None
        if projection is not None and projection_grad:
            partial = torch.zeros(
                tables, programs, width, d, dtype=torch.float32, device=table.device
            )
        touched = gradient.touched
        if touched is None:
            touched = torch.ones(len(gradient.rows), dtype=torch.bool, device=table.device)
        unused = gradient.sums
        settings = (
            (0.0, 0.0, 0.0, 0.0, 0.0, 0)
            if rule is None
            else (rule.lr, rule.weight_decay, rule.eps, *rule.betas, rule.seed)
        )
        if len(gradient.rows):
            kernels.update[tables, programs](
                table,
                gradient.rows,
                _on_device(gradient.starts, table),
                touched.to(torch.uint8),
                unused if projection is None else projection.contiguous(),
                gradient.sums,
                unused if partial is None else partial,
                unused if rows_grad is None else rows_grad,
                state[0] if state else unused,
                state[1] if len(state) > 1 else unused,
                *settings,
                width,
                d,
                PROJECTED=projection is not None,
                SHARED=partial is not None,
                RULE=kernels.GRADIENT.value if rule is None else int(rule.name),
                BITS={torch.float32: 32, torch.float16: 16, torch.bfloat16: 17}[table.dtype],
                BLOCK=_BLOCK,
                BLOCK_K=_padded(width),
                BLOCK_D=_padded(d),
            )
        return None if partial is None else partial.sum(dim=1)


def _programs(starts: tuple[int, ...]) -> int:
    """Programs for each table: enough for the longest, up to a limit."""
    longest = max(high - low for low, high in pairwise(starts))
    return max(1, min(_PROGRAMS, -(-longest // _BLOCK)))


def _on_device(starts: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(starts, dtype=torch.int64, device=like.device)


def _padded(size: int) -> int:
    side: int = max(_SIDE, triton.next_power_of_2(size))
    return side
