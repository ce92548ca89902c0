"""GDCN (Wang et al. 2023, arXiv 2311.04635): a deep and cross network with gates."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, Width, embed_fields
from mlet.models.mlp import MLP


class GatedCrossNetwork(nn.Module):
    """L layers ``c_{l+1} = c_0 ⊙ (W_c c_l + b) ⊙ σ(W_g c_l) + c_l``.

    Shape:
        (B, w) → (B, w).
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.gates = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        for layer in self.crosses:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)

    def forward(self, c0: Tensor) -> Tensor:
        """The crossed features of every row."""
        c = c0
        for cross, gate in zip(self.crosses, self.gates, strict=True):
            c = c0 * cross(c) * torch.sigmoid(gate(c)) + c
        return c


class GDCNConfig(ModelConfig):
    """GDCN's settings.

    Attributes:
        cross_layers: L.
        mlp: hidden widths of the deep part (the paper: layers of 400).
        structure: ``parallel`` (GDCN-P) or ``stacked`` (GDCN-S).
    """

    name: Literal["gdcn"] = "gdcn"
    cross_layers: int = Setting(3, ge=1)
    mlp: list[Width] = Setting([400, 400])
    structure: Literal["parallel", "stacked"] = "parallel"


class GDCN(CTRModel):
    """Gated crosses and an MLP, beside or after one another.

    ``c_0`` holds the F embeddings end to end, then the dense features.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: GDCNConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.structure = config.structure
        self.embedding = embed_fields(config, schema)
        width = len(schema.fields) * config.dim + len(schema.dense)
        self.cross = GatedCrossNetwork(width, config.cross_layers)
        self.mlp = MLP([width, *config.mlp], final_activation=True)
        deep = config.mlp[-1] if config.mlp else width
        self.head = nn.Linear(deep + (width if config.structure == "parallel" else 0), 1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags).flatten(1)
        c0 = torch.cat([vectors, batch.dense], dim=1)
        crossed = self.cross(c0)
        if self.structure == "stacked":
            features = self.mlp(crossed)
        else:
            features = torch.cat([crossed, self.mlp(c0)], dim=1)
        logits: Tensor = self.head(features).squeeze(1)
        return logits
