"""How two layers scale an update, direction by direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlet.nn.factored import Factors
from mlet.nn.two_layer import TwoLayerTable
from mlet.theory.factors import as_factors

#: A direction of W2 counts as one if its singular value is above this share of the largest.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Reweighting:
    """The first-order factors of an update in the singular directions of W2 and W1.

    With ``W2 = U2 S2 V2ᵀ`` and ``W1 = U1 S1 V1ᵀ``, the component of the gradient G along
    ``(u2ᵢ, v1ⱼ)`` moves the product with the factor ``s2ᵢ² + s1ⱼ²`` (derived from the update of
    `mlet.theory.decompose_update` by inserting the decompositions). Directions that the table
    already uses learn faster. Ordinary training has the factor 1 everywhere.

    Attributes:
        inner_values: s2, descending, min(n, k) singular values of W2 (float64).
        projection_values: s1, descending, of W1, d of them; where k < d the missing ones are 0.
        left_directions: n, the number of left directions in all.
    """

    inner_values: Tensor
    projection_values: Tensor
    left_directions: int

    @property
    def factors(self) -> Tensor:
        """``s2ᵢ² + s1ⱼ²`` (min(n, k) × d): the directions that W2 spans."""
        return self.inner_values.square().unsqueeze(1) + self.projection_values.square()

    @property
    def boosted(self) -> int:
        """How many left directions get the extra ``s2ᵢ²``: the rank of W2, at most k."""
        if not len(self.inner_values):
            return 0
        return int((self.inner_values > _TOLERANCE * self.inner_values[0]).sum())

    @property
    def outside(self) -> Tensor:
        """``s1ⱼ²`` (d): all that the other n − boosted left directions get."""
        return self.projection_values.square()

    @property
    def spread(self) -> float:
        """Largest over smallest factor among the spanned directions; ordinary training has 1."""
        factors = self.factors
        return float(factors.max() / factors.min().clamp(min=torch.finfo(torch.float64).tiny))


def reweighting(layer: TwoLayerTable | Factors) -> Reweighting:
    """The factors of a table, from the Gram matrices W2ᵀ W2 (k × k) and W1ᵀ W1 (d × d).

    A pass over the table in blocks: 10⁷ × 64 in seconds and bounded memory.

    Raises:
        ValueError: the table is an ordinary one.
    """
    factors = as_factors(layer)
    w1 = factors.wide_projection()
    return Reweighting(
        singular_values(factors.inner_gram())[: factors.num_embeddings],
        singular_values(w1.T @ w1),
        factors.num_embeddings,
    )


def singular_values(gram: Tensor) -> Tensor:
    """Of a matrix whose Gram matrix this is; descending.

    Below about 1e-8 of the largest it is rounding: the Gram matrix has lost its square.
    """
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp(min=0).sqrt().flip(0)
