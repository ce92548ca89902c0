"""Product-based neural network, inner and outer (Qu et al. 2016, arXiv 1611.00144)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, Width, embed_fields
from mlet.models.mlp import MLP
from mlet.models.registry import MODELS


class PNNConfig(ModelConfig):
    """PNN's settings.

    Attributes:
        product: ``inner`` (IPNN) or ``outer`` (OPNN).
        mlp: hidden widths.
    """

    name: Literal["pnn"] = "pnn"
    product: Literal["inner", "outer"] = "inner"
    mlp: list[Width] = Setting([400, 400, 400])


@MODELS.register("pnn")
class PNN(CTRModel):
    """An MLP on the embeddings and their pairwise products.

    The first hidden layer is ``relu(l_z + l_p + b)``, with ``l_z`` linear in the
    embeddings z and ``l_p`` in the products p: one linear layer on z, p and the dense features side
    by side. Inner: ``p_fg = ⟨v_f, v_g⟩`` for f < g. Outer: by superposition, the d × d matrix
    ``p = s sᵀ`` with ``s = Σ_f v_f``.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: PNNConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.product = config.product
        self.embedding = embed_fields(config, schema)
        fields = len(schema.fields)
        row, column = torch.triu_indices(fields, fields, offset=1)
        self.register_buffer("_pairs", row * fields + column, persistent=False)
        products = len(self._pairs) if config.product == "inner" else config.dim**2
        width = fields * config.dim + products + len(schema.dense)
        self.mlp = MLP([width, *config.mlp, 1], final_activation=False)

    _pairs: Tensor

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags)
        if self.product == "inner":
            products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)[:, self._pairs]
        else:
            total = vectors.sum(dim=1)
            products = (total.unsqueeze(2) * total.unsqueeze(1)).flatten(1)
        features = torch.cat([vectors.flatten(1), products, batch.dense], dim=1)
        logits: Tensor = self.mlp(features).squeeze(1)
        return logits
