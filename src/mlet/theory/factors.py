"""The two factors of a table, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlet.nn import FieldEmbedding
from mlet.nn.two_layer import TwoLayerTable

#: Rows taken at once where a table is summed over: bounds the float64 copy to some 30 MB.
_BLOCK_ROWS = 65_536


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

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """First row and rows of W2, in float64, a block at a time."""
        for start in range(0, self.num_embeddings, _BLOCK_ROWS):
            yield start, self.inner[start : start + _BLOCK_ROWS].double()

    def wide_projection(self) -> Tensor:
        """W1 in float64.

        Raises:
            ValueError: the table is an ordinary one.
        """
        if self.projection is None:
            raise ValueError("the table has one layer; there is no projection")
        return self.projection.double()


def factors_of(model: nn.Module) -> dict[str, Factors]:
    """Every table in a model: fields of a `FieldEmbedding` by their names, layers by theirs.

    Ordinary fields of a `FieldEmbedding` are included; other ordinary layers are not. Where two
    layers have a field of one name, the second's is put behind its layer's name.
    """
    found: dict[str, Factors] = {}
    for name, module in model.named_modules():
        if isinstance(module, TwoLayerTable):
            found[name] = Factors(module.inner.detach(), module.projection.detach())
        elif isinstance(module, FieldEmbedding):
            for field in module.fields:
                inner, projection = module.factors(field.name)
                key = field.name if field.name not in found else f"{name}.{field.name}"
                found[key] = Factors(inner, projection)
    return found


def factors_of_state_dict(state: Mapping[str, Any]) -> dict[str, Factors]:
    """Every pair ``x.inner`` (n × k), ``x.projection`` (k × d) in a ``state_dict``, by x."""
    found: dict[str, Factors] = {}
    for name, inner in state.items():
        prefix, _, last = name.rpartition(".")
        projection = state.get(f"{prefix}.projection" if prefix else "projection")
        if last != "inner" or not isinstance(inner, Tensor) or not isinstance(projection, Tensor):
            continue
        if inner.dim() == 2 and projection.dim() == 2:
            found[prefix or "(the model itself)"] = Factors(inner, projection)
    return found


def as_factors(layer: TwoLayerTable | Factors) -> Factors:
    """The factors of a two-layer table.

    Raises:
        ValueError: the table is an ordinary one.
    """
    factors = layer
    if isinstance(layer, TwoLayerTable):
        factors = Factors(layer.inner.detach(), layer.projection.detach())
    assert isinstance(factors, Factors)
    factors.wide_projection()
    return factors
