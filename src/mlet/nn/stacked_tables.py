"""Embedding tables of equal shape in one matrix, looked up by distinct rows.

A batch of click data names few distinct categories (in a Criteo-shaped batch of 2048 rows about
a quarter of the lookups are distinct), so each distinct row is read, projected and given its
gradient once; positions share the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mlet.nn.init import INITIALISATIONS, InitName, single_layer_
from mlet.nn.two_layer import check_dimensions, collapse_table


class _SparseRows(torch.autograd.Function):
    """``table[rows]`` for sorted distinct ``rows``; the gradient is sparse, of those rows."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return table.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        indices = rows.unsqueeze(0)
        sparse = torch.sparse_coo_tensor(
            indices, grad, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return sparse, None


class _ProjectSegments(torch.autograd.Function):
    """Project rows (R × k), sorted by table, each segment by its own table's k × d projection.

    With upstream gradient G on the segment's outputs: ``∂rows = G W1ᵀ``, ``∂W1 = rowsᵀ G``.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, projections: Tensor, bounds: list[int]) -> Tensor:
        ctx.save_for_backward(rows, projections)
        ctx.bounds = bounds
        vectors = rows.new_empty(rows.shape[0], projections.shape[2])
        for table in range(projections.shape[0]):
            segment = slice(bounds[table], bounds[table + 1])
            torch.mm(rows[segment], projections[table], out=vectors[segment])
        return vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, projections = ctx.saved_tensors
        bounds: list[int] = ctx.bounds
        rows_grad = torch.empty_like(rows)
        projections_grad = torch.empty_like(projections)
        for table in range(projections.shape[0]):
            segment = slice(bounds[table], bounds[table + 1])
            torch.mm(grad[segment], projections[table].T, out=rows_grad[segment])
            torch.mm(rows[segment].T, grad[segment], out=projections_grad[table])
        return rows_grad, projections_grad, None


class StackedTables(nn.Module):
    """T tables with the same d and k, one above the other.

    Args:
        sizes: number of categories of each table, by field name.
        dim: embedding dimension d.
        inner_dim: inner dimension k of two-layer tables; None for ordinary ones.
        init: initialisation of two-layer tables.
        sparse: give the stacked matrix a sparse gradient over the distinct rows; a dense one
            otherwise.

    Attributes:
        inner, projection: (Σn × k) and (T × k × d), where ``inner_dim`` is given.
        weight: (Σn × d), where it is not.
    """

    _bounds: Tensor

    def __init__(
        self,
        sizes: Mapping[str, int],
        dim: int,
        inner_dim: int | None,
        *,
        init: InitName,
        sparse: bool,
    ) -> None:
        super().__init__()
        for name, size in sizes.items():
            check_dimensions(size, dim, dim + 1, f"field {name!r}")
        if inner_dim is not None:
            check_dimensions(sum(sizes.values()), dim, inner_dim, f"fields {', '.join(sizes)}")
        self.sizes = dict(sizes)
        self.starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        self.dim = dim
        self.inner_dim = inner_dim
        self.init: InitName = init
        self.sparse = sparse
        rows = sum(sizes.values())
        if inner_dim is None:
            self.weight = nn.Parameter(torch.empty(rows, dim))
        else:
            self.inner = nn.Parameter(torch.empty(rows, inner_dim))
            self.projection = nn.Parameter(torch.empty(len(sizes), inner_dim, dim))
        self.register_buffer(
            "_bounds", torch.tensor([*self.starts.values(), rows]), persistent=False
        )
        self.reset_parameters()

    @property
    def stacked(self) -> nn.Parameter:
        """The matrix that is looked up: ``inner`` or ``weight``."""
        return self.weight if self.inner_dim is None else self.inner

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise each table on its own, by its own number of categories."""
        for place, name in enumerate(self.sizes):
            rows = self.rows_of(name)
            if self.inner_dim is None:
                single_layer_(rows)
            else:
                INITIALISATIONS[self.init](rows, self.projection[place])

    def rows_of(self, name: str) -> Tensor:
        """One table's rows of the stacked matrix: a view, n × k or n × d."""
        start = self.starts[name]
        return self.stacked.detach()[start : start + self.sizes[name]]

    def table(self, name: str) -> Tensor:
        """One table as it would be served (n × d): a copy, collapsed if two-layer."""
        rows = self.rows_of(name)
        if self.inner_dim is None:
            return rows.clone()
        return collapse_table(rows, self.projection.detach()[list(self.sizes).index(name)])

    def forward(self, ids: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Look up ids (any lengths, by table) through their distinct rows.

        Returns:
            vectors (R × d) of the R distinct rows, and for every id, tables end to end in the
            order given, the position of its vector among them.
        """
        rows = torch.cat([self._global_rows(name, local) for name, local in ids.items()])
        distinct, positions = torch.unique(rows, return_inverse=True)
        if self.sparse:
            looked_up: Tensor = _SparseRows.apply(self.stacked, distinct)  # type: ignore[no-untyped-call]
        else:
            looked_up = self.stacked.index_select(0, distinct)
        if self.inner_dim is None:
            return looked_up, positions
        bounds = torch.searchsorted(distinct, self._bounds).tolist()
        vectors: Tensor = _ProjectSegments.apply(  # type: ignore[no-untyped-call]
            looked_up, self.projection, bounds
        )
        return vectors, positions

    def _global_rows(self, name: str, ids: Tensor) -> Tensor:
        """Rows of the stacked matrix for one table's ids, each checked to lie in the table."""
        if ids.numel():
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= self.sizes[name]:
                raise IndexError(
                    f"field {name!r}: id {low if low < 0 else high} is outside its table of "
                    f"{self.sizes[name]} categories (valid ids: 0 to {self.sizes[name] - 1})"
                )
        return ids.long() + self.starts[name]
