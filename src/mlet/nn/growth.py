"""Tables of more categories: the rows there are, and how new ones begin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from mlet.engine import TableStack
from mlet.engine.rounding import compute_dtype
from mlet.nn.field_embedding import FieldEmbedding
from mlet.nn.plain_lookups import IdBounds
from mlet.nn.rare_rows import RareMap
from mlet.nn.stacked_tables import StackedTables

#: What new rows begin as: the mean of those there are, the padding row, a row by its id, or a
#: vector (d,), or one for each new row (m × d).
Start: TypeAlias = Literal["mean", "padding"] | int | Tensor


@dataclass(frozen=True)
class GrownParameter:
    """A parameter with more rows, to take the place of another.

    Attributes:
        old, new: (n × w) and (N × w).
        places: (n,) int64, where each old row is in the new one.
    """

    old: nn.Parameter
    new: nn.Parameter
    places: Tensor

    def grown(self, state: Tensor, value: float) -> Tensor:
        """What an optimizer keeps of each old row (n, …), with a value for each that begins."""
        more = state.new_full((len(self.new), *state.shape[1:]), value)
        return more.index_copy_(0, self.places.to(state.device), state)


@dataclass(frozen=True)
class NewRows:
    """How the new rows of one table begin.

    Attributes:
        rows: how many the table will have.
        start: see `Start`.
        noise: what is added to each, uniform on ±noise · sqrt(1/rows): 1 is as mlet draws a table.
        padding: the row of padding, which is no part of the mean.
        projection: W1 (k × d) of a two-layer table, whose rows are those of W2.
        bias: (d,) added to all rows of the table.
    """

    rows: int
    start: Start
    noise: float
    padding: int | None = None
    projection: Tensor | None = None
    bias: Tensor | None = None

    def of(self, table: Tensor) -> Tensor:
        """The rows (m × w) that come after those of ``table`` (n × w).

        Raises:
            ValueError: there is no such row to start from, or the vector is of another shape, or
                none that the projection can give.
        """
        dtype = compute_dtype(table)
        begin = self._start(table).to(device=table.device, dtype=dtype)
        rows = begin.expand(self.rows - len(table), table.shape[1]).clone()
        bound = self.noise / math.sqrt(self.rows)
        return rows.add_(torch.empty_like(rows).uniform_(-bound, bound) if bound else 0)

    def _start(self, table: Tensor) -> Tensor:
        """(w,) or (m × w)."""
        n = len(table)
        if isinstance(self.start, Tensor):
            return self._given(self.start.detach(), table)
        if self.start == "mean":
            wide = compute_dtype(table)
            if self.padding is None or n == 1:
                return table.mean(dim=0, dtype=wide)
            return (table.sum(dim=0, dtype=wide) - table[self.padding]) / (n - 1)
        row = self.padding if self.start == "padding" else self.start
        if row is None:
            raise ValueError("start='padding', but it has no padding_idx")
        if isinstance(row, bool) or not isinstance(row, int):
            raise ValueError(f"start={row!r} is not 'mean', 'padding', an id or a tensor")
        if not -n <= row < n:
            raise ValueError(f"start={row} is no id of its {n} categories")
        return table[row]

    def _given(self, start: Tensor, table: Tensor) -> Tensor:
        """A vector of the table, or of the rows of W2 whose product it is."""
        width = (table if self.projection is None else self.projection).shape[1]
        if start.dim() == 0 or start.shape[:-1] not in ((), (self.rows - len(table),)):
            shape = tuple(start.shape)
            raise ValueError(f"start is {shape}, which is no vector, nor one for each new row")
        if start.shape[-1] != width:
            raise ValueError(f"start is {start.shape[-1]} wide, the table is {width}")
        if self.bias is not None:
            start = start - self.bias
        if self.projection is None:
            return start
        projection = self.projection.double()
        rows: Tensor = start.double() @ torch.linalg.pinv(projection)
        if not torch.allclose(rows @ projection, start.double(), rtol=1e-3, atol=1e-5):
            raise ValueError("its projection has not the rank to give the vector of start")
        return rows


@torch.no_grad()
def grown_parameter(
    old: nn.Parameter, sizes: Sequence[int], more: Sequence[NewRows | None]
) -> GrownParameter:
    """A matrix of tables one above the other with more rows; ``requires_grad`` and what users
    attached stay.

    Args:
        old: (Σn × w), the tables.
        sizes: n of each.
        more: of each what it gets; None leaves it as it is.

    Raises:
        ValueError: as `NewRows.of`.
    """
    blocks, places = [], []
    ends = [each.rows if each else size for size, each in zip(sizes, more, strict=True)]
    firsts = accumulate(ends[:-1], initial=0)
    parts = old.detach().split(list(sizes))
    for rows, first, size, each in zip(parts, firsts, sizes, more, strict=True):
        blocks.append(rows)
        places.append(torch.arange(first, first + size, device=old.device))
        if each is not None:
            if old.is_meta:
                blocks.append(rows.new_empty(each.rows - size, rows.shape[1]))
            else:
                blocks.append(each.of(rows).to(rows.dtype))
    new = nn.Parameter(torch.cat(blocks), requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    return GrownParameter(old, new, torch.cat(places))


def resize_field(embedding: FieldEmbedding, name: str, rows: int) -> None:
    """Let a field's layer and its tables know how many categories it has, once their matrix has; a
    field that others share, for them too."""
    embedding.fields = tuple(
        replace(field, num_embeddings=rows) if embedding._owners[field.name] == name else field
        for field in embedding.fields
    )
    embedding.rows = RareMap(embedding.fields)
    tables = embedding.tables_of(name)
    assert isinstance(tables, StackedTables)
    resize_tables(tables, name, rows)


def resize_tables(tables: StackedTables, name: str, rows: int) -> None:
    """Let a stack know how many categories one of its tables has, once its matrix has them."""
    sizes = {**tables.sizes, name: rows}
    tables.sizes = sizes
    tables.stack = TableStack(tuple(sizes), tuple(sizes.values()))
    tables.bounds = IdBounds(tables.stack)
    tables.starts = dict(zip(sizes, tables.stack.first_rows, strict=False))
