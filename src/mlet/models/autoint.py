"""AutoInt (Song et al. 2019, arXiv 1810.11921)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, embed_fields
from mlet.models.registry import MODELS


class InteractingLayer(nn.Module):
    """Multi-head self-attention among feature vectors, with a residual connection.

    For every head h, with ``α_mk = softmax_k ⟨W_Q e_m, W_K e_k⟩``::

        ẽ_m = Σ_k α_mk W_V e_k
        e_m ← relu(ẽ_m of all heads end to end + W_Res e_m)

    Shape:
        (B, M, width) → (B, M, heads · head_dim).
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        shape = (width, heads * head_dim)
        self.query, self.key, self.value, self.residual = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape))) for _ in range(4)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors that have attended to one another."""
        query, key, value = (
            (vectors @ weight).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for weight in (self.query, self.key, self.value)
        )
        attention = (query @ key.transpose(2, 3)).softmax(dim=3)
        attended = (attention @ value).transpose(1, 2).flatten(2)
        return torch.relu(attended + vectors @ self.residual)


class AutoIntConfig(ModelConfig):
    """AutoInt's settings (defaults: the paper's).

    Attributes:
        layers: interacting layers.
        heads: of each.
        head_dim: width of each head.
    """

    name: Literal["autoint"] = "autoint"
    layers: int = Setting(3, ge=1)
    heads: int = Setting(2, ge=1)
    head_dim: int = Setting(32, ge=1)


@MODELS.register("autoint")
class AutoInt(CTRModel):
    """Attention layers over the fields, then a linear layer.

    A dense feature m has a vector ``v_m`` of its own, scaled by its value, and takes
    part like a field.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: AutoIntConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.embedding = embed_fields(config, schema)
        dense, width = len(schema.dense), config.head_dim * config.heads
        self.dense_vectors = nn.Parameter(0.1 * torch.randn(dense, config.dim))
        widths = [config.dim] + [width] * (config.layers - 1)
        self.layers = nn.Sequential(
            *(InteractingLayer(inputs, config.heads, config.head_dim) for inputs in widths)
        )
        self.head = nn.Linear((len(schema.fields) + dense) * width, 1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        dense = batch.dense.unsqueeze(2) * self.dense_vectors
        vectors = torch.cat([self.embedding(batch.ids, batch.bags), dense], dim=1)
        logits: Tensor = self.head(self.layers(vectors).flatten(1)).squeeze(1)
        return logits
