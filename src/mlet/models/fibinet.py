"""FiBiNET (Huang, Zhang and Zhang 2019, arXiv 1905.09433)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, Width, embed_fields
from mlet.models.first_order import FirstOrder, FirstOrderConfig
from mlet.models.mlp import MLP
from mlet.models.registry import MODELS

BilinearType = Literal["all", "each", "interaction"]


class SqueezeExcitation(nn.Module):
    """Weighs fields by what the row holds: ``V = A ⊙ E`` (the SENET layer).

    Squeeze ``z_f = mean(e_f)``, excite ``A = ReLU(W2 ReLU(W1 z))`` with
    W1 (F/r × F) and W2 (F × F/r), reweigh ``v_f = a_f e_f``.

    Shape:
        (B, F, d) → (B, F, d).
    """

    def __init__(self, fields: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, fields // reduction)
        self.narrow = nn.Linear(fields, narrow, bias=False)
        self.wide = nn.Linear(narrow, fields, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """The reweighted vectors."""
        squeezed = vectors.mean(dim=2)
        weights: Tensor = torch.relu(self.wide(torch.relu(self.narrow(squeezed))))
        return vectors * weights.unsqueeze(2)


class BilinearInteraction(nn.Module):
    """``p_ij = (v_i W) ⊙ v_j`` for every pair i < j.

    W is one for all pairs (``all``), one for each left field (``each``) or
    one for each pair (``interaction``).

    Shape:
        (B, F, d) → (B, F(F − 1)/2, d).
    """

    left: Tensor
    right: Tensor

    def __init__(self, fields: int, dim: int, kind: BilinearType) -> None:
        super().__init__()
        left, right = torch.triu_indices(fields, fields, offset=1)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.kind = kind
        count = {"all": 1, "each": fields - 1, "interaction": len(left)}[kind]
        self.weights = nn.Parameter(torch.empty(count, dim, dim))
        for weight in self.weights:
            nn.init.xavier_normal_(weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """The products of all pairs."""
        chosen: Tensor = self.weights
        if self.kind == "all":
            chosen = chosen.expand(len(self.left), -1, -1)
        elif self.kind == "each":
            chosen = chosen[self.left]
        mixed = torch.einsum("bpd,pde->bpe", vectors[:, self.left], chosen)
        return mixed * vectors[:, self.right]


class FiBiNETConfig(FirstOrderConfig):
    """FiBiNET's settings.

    Attributes:
        reduction: r of the SENET layer (the paper: 3).
        bilinear: how many matrices there are: ``all``, ``each`` or ``interaction``.
        mlp: hidden widths (the paper on Criteo: three layers of 400).
    """

    name: Literal["fibinet"] = "fibinet"
    reduction: int = Setting(3, ge=1)
    bilinear: BilinearType = "all"
    mlp: list[Width] = Setting([400, 400, 400])


@MODELS.register("fibinet")
class FiBiNET(CTRModel):
    """Bilinear interactions of the embeddings and of the SENET-weighted ones, then an MLP.

    The MLP takes both sets of products end to end, followed by the dense features; the linear part
    is added.

    Shape:
        `Batch` of B rows → logits (B,).

    Raises:
        ValueError: there are fewer than two fields to multiply.
    """

    def __init__(self, config: FiBiNETConfig, schema: DatasetSchema) -> None:
        super().__init__()
        fields = len(schema.fields)
        if fields < 2:
            raise ValueError("bilinear interactions need at least two fields")
        self.embedding = embed_fields(config, schema)
        self.first_order = FirstOrder(config, schema)
        self.senet = SqueezeExcitation(fields, config.reduction)
        self.bilinear = BilinearInteraction(fields, config.dim, config.bilinear)
        self.senet_bilinear = BilinearInteraction(fields, config.dim, config.bilinear)
        width = fields * (fields - 1) * config.dim + len(schema.dense)
        self.mlp = MLP([width, *config.mlp, 1], final_activation=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags)
        products = self.bilinear(vectors).flatten(1)
        weighted = self.senet_bilinear(self.senet(vectors)).flatten(1)
        features = torch.cat([products, weighted, batch.dense], dim=1)
        deep: Tensor = self.mlp(features).squeeze(1)
        linear: Tensor = self.first_order(batch)
        return linear + deep
