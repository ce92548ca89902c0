"""DCN-V2, full-matrix form (Wang et al. 2021, arXiv 2008.13535)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, Width, embed_fields
from mlet.models.mlp import MLP


class CrossNetwork(nn.Module):
    """L layers ``x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l`` (equation 1).

    Shape:
        (B, w) → (B, w).
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x0: Tensor) -> Tensor:
        """The crossed features of every row."""
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


class DCNv2Config(ModelConfig):
    """DCN-V2's settings.

    Attributes:
        cross_layers: L.
        mlp: hidden widths of the deep part.
        structure: ``stacked`` (the MLP on the crossed features) or ``parallel`` (beside them).
    """

    name: Literal["dcnv2"] = "dcnv2"
    cross_layers: int = Setting(2, ge=1)
    mlp: list[Width] = Setting([768, 768])
    structure: Literal["stacked", "parallel"] = "stacked"


class DCNv2(CTRModel):
    """Explicit crosses of bounded degree and an MLP, one after or beside the other.

    ``x_0`` holds the F embeddings end to end, then the dense features; the logit is linear in the
    MLP's last hidden layer (stacked), or in that and the crossed features (parallel).

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: DCNv2Config, schema: DatasetSchema) -> None:
        super().__init__()
        self.structure = config.structure
        self.embedding = embed_fields(config, schema)
        width = len(schema.fields) * config.dim + len(schema.dense)
        self.cross = CrossNetwork(width, config.cross_layers)
        self.mlp = MLP([width, *config.mlp], final_activation=True)
        deep = config.mlp[-1] if config.mlp else width
        self.head = nn.Linear(deep + (width if config.structure == "parallel" else 0), 1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags).flatten(1)
        x0 = torch.cat([vectors, batch.dense], dim=1)
        crossed = self.cross(x0)
        if self.structure == "stacked":
            features = self.mlp(crossed)
        else:
            features = torch.cat([crossed, self.mlp(x0)], dim=1)
        logits: Tensor = self.head(features).squeeze(1)
        return logits
