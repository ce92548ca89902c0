"""The one notion of a factored table: two factors, their product, and who holds such tables.

Whatever works on two-layer tables wherever they are (surgery, theory, export, inspection) asks a
module that is `Factored`, or a ``state_dict`` through `factor_pairs`, and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlet.errors import ConversionError

#: A table's tensors in a ``state_dict``, behind its name: both factors, or the one ordinary table;
#: and what is added to all of its rows, if anything is.
INNER, PROJECTION, WEIGHT, TABLE_BIAS = "inner", "projection", "weight", "table_bias"

#: Numbers taken at once where a table is multiplied or summed over: bounds the float64 copy to 8
#: MB. No more than so many rows are.
_BLOCK_NUMBERS, _BLOCK_ROWS = 1 << 20, 1 << 16


def block_rows(width: int) -> int:
    """How many rows of a table to take at once."""
    return max(1, min(_BLOCK_ROWS, _BLOCK_NUMBERS // width))


@dataclass(frozen=True)
class Factors:
    """W2 (n × k) and W1 (k × d) of one table, detached views of the parameters.

    For an ordinary table ``projection`` is None and ``inner`` is the table itself (n × d).
    """

    inner: Tensor
    projection: Tensor | None

    @property
    def num_embeddings(self) -> int:
        """Number of categories n."""
        return self.inner.shape[0]

    @property
    def inner_dim(self) -> int | None:
        """k, or None for an ordinary table."""
        return None if self.projection is None else self.inner.shape[1]

    @property
    def embedding_dim(self) -> int:
        """d."""
        return self.inner.shape[1] if self.projection is None else self.projection.shape[1]

    def inner_gram(self, weights: Tensor | None = None) -> Tensor:
        """``W2ᵀ C W2`` (k × k, float64) with C the diagonal of ``weights`` (n), or the identity.

        Summed a block of rows at a time: no n × n object, and bounded memory at any n.
        """
        width = self.inner.shape[1]
        gram = torch.zeros(width, width, dtype=torch.float64, device=self.inner.device)
        for start, rows in self.blocks():
            scaled = rows
            if weights is not None:
                share = weights[start : start + len(rows)].to(rows)
                scaled = rows * share.unsqueeze(1)
            gram += rows.T @ scaled
        return gram

    def are_finite(self) -> bool:
        """Whether neither factor holds NaN or infinite values."""
        factors = (self.inner, self.projection)
        return all(bool(factor.isfinite().all()) for factor in factors if factor is not None)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """First row and rows of W2, in float64, a block at a time."""
        count = block_rows(self.inner.shape[1])
        for start in range(0, self.num_embeddings, count):
            yield start, self.inner[start : start + count].double()

    def wide_projection(self) -> Tensor:
        """W1 in float64.

        Raises:
            ValueError: the table is an ordinary one.
        """
        if self.projection is None:
            raise ValueError("the table has one layer; there is no projection")
        return self.projection.double()


class Factored(nn.Module):
    """A module that holds tables, some of them two-layer."""

    @abstractmethod
    def named_factors(self) -> dict[str, Factors]:
        """Its tables by name, in order; a module that is one table gives it the name ""."""

    @abstractmethod
    def factor_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """The parameters in which the factors of two-layer tables lie, several tables in one pair
        or not: inner tables (Σn × k) and projections (k × d, or T × k × d)."""

    @abstractmethod
    def collapse(self) -> nn.Module:
        """A module of ordinary tables with the same outputs."""


def factored_modules(model: nn.Module) -> dict[str, Factored]:
    """The modules in a model that have two-layer tables, each once, by qualified name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Factored) and any(True for _ in module.factor_parameters())
    }


def qualified(module: str, table: str) -> str:
    """The name of a table in a model: its module's and its own, either of which may be empty."""
    return ".".join(filter(None, (module, table)))


def factor_pairs(state: Mapping[str, Any]) -> dict[str, Factors]:
    """Every pair ``x.inner`` (n × k), ``x.projection`` (k × d) in a ``state_dict``, by x.

    Raises:
        ConversionError: the shapes of a pair do not fit together.
    """
    found = {}
    for name in state:
        if not isinstance(name, str):
            raise ConversionError(f"a state_dict has names as keys, not {name!r}")
    for name, inner in state.items():
        table, _, last = name.rpartition(".")
        projection = state.get(qualified(table, PROJECTION))
        if last != INNER or not isinstance(inner, Tensor) or not isinstance(projection, Tensor):
            continue
        if inner.dim() == 2 and projection.dim() == 3:
            raise ConversionError(
                f"{name!r} holds several tables in one, as mlet 0.1 saved a FieldEmbedding: load "
                f"it into its model and save that again"
            )
        if inner.dim() != 2 or projection.dim() != 2 or inner.shape[1] != projection.shape[0]:
            raise ConversionError(
                f"{name!r} {tuple(inner.shape)} and its projection {tuple(projection.shape)} are "
                f"no pair of factors"
            )
        for factor in (inner, projection):
            plain = factor.layout == torch.strided and not factor.is_meta
            if not plain or factor.is_quantized or not factor.dtype.is_floating_point:
                raise ConversionError(
                    f"table {table!r}: a factor is no plain tensor of floating point numbers but "
                    f"{factor.dtype}, {factor.layout}, on {factor.device}"
                )
        found[table] = Factors(inner, projection)
    return found


@torch.no_grad()
def collapse_table(
    inner: Tensor, projection: Tensor, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """The ordinary table ``inner @ projection`` (n × d), in the projection's dtype, with a bias (d)
    added to every row if there is one; written to ``out``, or to a new one.

    It is accumulated in float64 and rounded once, a block of rows at a time.
    """
    table = projection.new_empty(inner.shape[0], projection.shape[1]) if out is None else out
    wide = projection.double()
    count = block_rows(inner.shape[1])
    for start in range(0, inner.shape[0], count):
        rows = slice(start, start + count)
        product = inner[rows].double() @ wide
        table[rows] = product if bias is None else product + bias.double()
    return table
