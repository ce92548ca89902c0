"""Deep & Cross Network (Wang et al. 2017, arXiv 1708.05123)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, Width, embed_fields
from mlet.models.mlp import MLP


class VectorCrossNetwork(nn.Module):
    """L layers ``x_{l+1} = x_0 ⟨x_l, w_l⟩ + b_l + x_l`` (equation 3).

    Shape:
        (B, w) → (B, w).
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(layers, width))
        self.biases = nn.Parameter(torch.zeros(layers, width))
        nn.init.xavier_normal_(self.weights)

    def forward(self, x0: Tensor) -> Tensor:
        """The crossed features of every row."""
        x = x0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = x0 * (x @ weight).unsqueeze(1) + bias + x
        return x


class DCNConfig(ModelConfig):
    """DCN's settings.

    Attributes:
        cross_layers: L (the paper: 6).
        mlp: hidden widths of the deep part (the paper: 2 layers of 1024).
    """

    name: Literal["dcn"] = "dcn"
    cross_layers: int = Setting(6, ge=1)
    mlp: list[Width] = Setting([1024, 1024], min_length=1)


class DCN(CTRModel):
    """Explicit crosses and an MLP side by side, a linear layer over both.

    ``x_0`` holds the F embeddings end to end, then the dense features.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: DCNConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.embedding = embed_fields(config, schema)
        width = len(schema.fields) * config.dim + len(schema.dense)
        self.cross = VectorCrossNetwork(width, config.cross_layers)
        self.mlp = MLP([width, *config.mlp], final_activation=True)
        self.head = nn.Linear(width + config.mlp[-1], 1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags).flatten(1)
        x0 = torch.cat([vectors, batch.dense], dim=1)
        logits: Tensor = self.head(torch.cat([self.cross(x0), self.mlp(x0)], dim=1)).squeeze(1)
        return logits
