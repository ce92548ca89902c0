"""The engine in plain torch operations: any device, any dtype; the reference of the others."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mlet.engine.batch import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.rounding import compute_dtype, stochastic_round
from mlet.engine.rules import Rule, apply_rule


class ReferenceBackend:
    """See `mlet.engine.backend.Backend`."""

    def find_distinct(
        self, table: Tensor, projection: Tensor | None, lookups: Lookups, stack: TableStack
    ) -> Distinct:
        """Sorted distinct rows, by sorting; tables are never listed whole."""
        rows, slots = torch.unique(
            self._stacked_rows(lookups, stack), sorted=True, return_inverse=True
        )
        return Distinct(rows, stack.starts_in(rows), slots)

    @staticmethod
    def _stacked_rows(lookups: Lookups, stack: TableStack) -> Tensor:
        """(V,): each lookup's row of the stacked matrix, checked to lie in its own table."""
        device = lookups.ids.device
        lengths = torch.tensor(lookups.starts, device=device).diff()

        def per_lookup(values: list[int] | tuple[int, ...]) -> Tensor:
            return torch.tensor(values, device=device).repeat_interleave(lengths)

        outside = (lookups.ids < 0) | (lookups.ids >= per_lookup(stack.sizes))
        if bool(outside.any()):
            raise stack.out_of_range(lookups, int(outside.nonzero()[0]))
        return lookups.ids + per_lookup(stack.first_rows[:-1])

    def embed(
        self, table: Tensor, projection: Tensor | None, lookups: Lookups, distinct: Distinct
    ) -> Tensor:
        """Gather, project, hand out."""
        vectors = self._project(table, projection, distinct)
        tables = len(lookups.offsets)
        positions = vectors.index_select(0, distinct.slots)
        if not lookups.has_bags:
            by_table = positions.view(tables, lookups.batch, vectors.shape[1])
            return by_table.transpose(0, 1).contiguous()
        weights = lookups.weights(vectors.dtype)
        if weights is not None:
            positions = positions * weights.unsqueeze(1)
        out = vectors.new_zeros(lookups.batch * tables, vectors.shape[1])
        out.index_add_(0, lookups.outputs(), positions)
        return out.view(lookups.batch, tables, vectors.shape[1])

    def _project(self, table: Tensor, projection: Tensor | None, distinct: Distinct) -> Tensor:
        """The vectors (R × d) of the distinct rows."""
        rows = table.index_select(0, distinct.rows).to(compute_dtype(table))
        if projection is None:
            return rows
        wide = projection.to(rows.dtype)
        segments = enumerate(pairwise(distinct.starts))
        return torch.cat([rows[low:high] @ wide[place] for place, (low, high) in segments])

    def sum_gradients(self, grad: Tensor, lookups: Lookups, distinct: Distinct) -> Tensor:
        """Each lookup's upstream gradient, added to its row's."""
        positions = grad.reshape(-1, grad.shape[2]).index_select(0, lookups.outputs())
        weights = lookups.weights(grad.dtype)
        if weights is not None:
            positions = positions * weights.unsqueeze(1)
        sums = grad.new_zeros(len(distinct.rows), grad.shape[2])
        return sums.index_add_(0, distinct.slots, positions)

    def factor_gradients(
        self, table: Tensor, projection: Tensor, gradient: RowGradient
    ) -> tuple[Tensor, Tensor]:
        """With G the rows' gradient: ``∂W2 = G W1ᵀ``, ``∂W1 = W2ᵀ G``, table by table."""
        rows = table.index_select(0, gradient.rows).to(gradient.sums.dtype)
        wide = projection.to(rows.dtype)
        rows_grad = torch.empty_like(rows)
        projection_grad = torch.empty_like(wide)
        for place, (low, high) in enumerate(pairwise(gradient.starts)):
            sums = gradient.sums[low:high]
            torch.mm(sums, wide[place].t(), out=rows_grad[low:high])
            torch.mm(rows[low:high].t(), sums, out=projection_grad[place])
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
        """Gather rows and state, apply the rule, put both back."""
        gradient = gradient.compact()
        grad, other = gradient.sums, None
        if projection is not None:
            grad, other = self.factor_gradients(table, projection, gradient)
        update_rows(table, gradient.rows, grad, rule, state)
        return other if projection_grad else None


def update_rows(
    table: Tensor, rows: Tensor, grad: Tensor, rule: Rule, state: tuple[Tensor, ...]
) -> None:
    """Apply ``rule`` to some rows of a table and to their state, in place.

    Args:
        table: (n × w).
        rows: (R,), each once.
        grad: (R × w), of those rows.
        rule: 16-bit tables are rounded stochastically, by its seed.
        state: (n × …), see `mlet.engine.rules`.
    """
    values = table.index_select(0, rows).to(compute_dtype(table))
    rows_state = tuple(tensor.index_select(0, rows) for tensor in state)
    apply_rule(values, grad.to(values.dtype), rule, rows_state)
    if table.dtype != values.dtype:
        generator = torch.Generator(table.device).manual_seed(rule.seed)
        values = stochastic_round(values, table.dtype, generator)
    table.index_copy_(0, rows, values)
    for tensor, updated in zip(state, rows_state, strict=True):
        tensor.index_copy_(0, rows, updated)
