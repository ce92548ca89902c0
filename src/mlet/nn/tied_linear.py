"""An output layer whose weights are a two-layer table, as language models tie them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlet.nn.init import balanced_factors
from mlet.nn.plain_state import TakesPlainWeight
from mlet.nn.product import product
from mlet.nn.two_layer import TwoLayerTable


class TiedLinear(TakesPlainWeight, nn.Linear):
    """``x Wᵀ + b`` with ``W = W2 W1`` the very table of an embedding: both train the same factors.

    Args:
        table: the embedding (n × d); its parameters become parameters of this layer too.
        bias: (n), or None.

    Shape:
        - Input: (…, d). Output: (…, n).
    """

    def __init__(self, table: TwoLayerTable, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.in_features = table.embedding_dim
        self.out_features = table.num_embeddings
        self.inner = table.inner
        self.projection = table.projection
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """``inner @ projection`` (n × d), computed afresh at each access."""
        return product(self.inner, self.projection)

    def __setattr__(self, name: str, value: Any) -> None:
        """As of any module, but for `weight`."""
        if name == "weight":
            raise AttributeError(
                "the weight of a tied output layer is computed from inner and projection"
            )
        super().__setattr__(name, value)

    @torch.no_grad()
    def set_table(self, table: Tensor) -> None:
        """Let the product equal ``table`` (n × d) to float precision, in balanced factors."""
        factors = self.inner.detach(), self.projection.detach()
        balanced_factors(table, self.inner.shape[1], self.out_features**-0.5, out=factors)

    def forward(self, input: Tensor) -> Tensor:
        """Scores (…, n), through k-wide vectors where that is less work than the product."""
        n, k = self.inner.shape
        d = self.in_features
        inputs = input.numel() // d
        if inputs * k * (d + n) < n * d * (k + inputs):
            return F.linear(F.linear(input, self.projection), self.inner, self.bias)
        return F.linear(input, self.weight, self.bias)
