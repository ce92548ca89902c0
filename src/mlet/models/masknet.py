"""MaskNet (Wang, She and Zhang 2021, arXiv 2102.07619)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, Width, embed_fields
from mlet.models.mlp import MLP
from mlet.models.registry import MODELS


class MaskBlock(nn.Module):
    """``ReLU(LN(W (mask ⊙ x)))`` with the instance-guided mask of the embeddings V.

    The mask is ``W_d2 ReLU(W_d1 V + b_d1) + b_d2``, its hidden layer ``ratio`` times as wide as x.

    Shape:
        V (B, v) and x (B, w) → (B, width).
    """

    def __init__(self, embedded: int, inputs: int, width: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, int(ratio * inputs))
        self.aggregate = nn.Linear(embedded, hidden)
        self.project = nn.Linear(hidden, inputs)
        self.hidden = nn.Linear(inputs, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedded: Tensor, x: Tensor) -> Tensor:
        """The block's output."""
        mask = self.project(torch.relu(self.aggregate(embedded)))
        return torch.relu(self.norm(self.hidden(mask * x)))


class MaskNetConfig(ModelConfig):
    """MaskNet's settings.

    Attributes:
        structure: ``parallel`` (blocks on the embeddings side by side, an MLP on top) or
            ``serial`` (each on the one before).
        blocks: number of mask blocks.
        width: of a block's output.
        ratio: width of the mask's hidden layer over that of what is masked (the paper: 2).
        mlp: hidden widths on top (parallel; the paper: as wide as the blocks).
    """

    name: Literal["masknet"] = "masknet"
    structure: Literal["parallel", "serial"] = "parallel"
    blocks: int = Setting(3, ge=1)
    width: Width = 64
    ratio: float = Setting(2.0, gt=0)
    mlp: list[Width] = Setting([64])


@MODELS.register("masknet")
class MaskNet(CTRModel):
    """Mask blocks on layer-normalised embeddings.

    V holds the F embeddings, then the dense features; each embedding is normalised on its own
    (``LN_EMB``). The first block of the serial form and all of the parallel one take
    ``LN_EMB(V)``, later ones of the serial form what the one before gave.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: MaskNetConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.structure = config.structure
        self.embedding = embed_fields(config, schema)
        fields = len(schema.fields)
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(fields))
        embedded = fields * config.dim + len(schema.dense)
        serial = config.structure == "serial"
        self.blocks = nn.ModuleList(
            MaskBlock(
                embedded, config.width if serial and place else embedded, config.width, config.ratio
            )
            for place in range(config.blocks)
        )
        width = config.width if serial else config.blocks * config.width
        hidden = [] if serial else config.mlp
        self.mlp = MLP([width, *hidden, 1], final_activation=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags)
        embedded = torch.cat([vectors.flatten(1), batch.dense], dim=1)
        normed = [norm(v) for norm, v in zip(self.norms, vectors.unbind(1), strict=True)]
        x = torch.cat([*normed, batch.dense], dim=1)
        if self.structure == "serial":
            for block in self.blocks:
                x = block(embedded, x)
        else:
            x = torch.cat([block(embedded, x) for block in self.blocks], dim=1)
        logits: Tensor = self.mlp(x).squeeze(1)
        return logits
