"""The linear part that many click models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlet import nn as mlet_nn
from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import ModelConfig, embed_fields


class FirstOrder(nn.Module):
    """A weight for each category and each dense feature: ``b + Σ_f w_f[id_f] + ⟨w, dense⟩``.

    The width-1 tables are ordinary: a product of two layers has nothing to add to a single number.

    Shape:
        `Batch` of B rows → (B,).
    """

    def __init__(self, config: ModelConfig, schema: DatasetSchema) -> None:
        super().__init__()
        narrow = config.single_layer().model_copy(
            update={"dim": 1, "compression": None, "quantize": None}
        )
        self.tables: mlet_nn.FieldEmbedding = embed_fields(narrow, schema)
        for table in self.tables.parameters():
            nn.init.zeros_(table)
        self.dense = nn.Parameter(torch.zeros(len(schema.dense)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        """The linear term of every row, (B,)."""
        weights: Tensor = self.tables(batch.ids, batch.bags)
        return self.bias + weights.sum(dim=(1, 2)) + batch.dense @ self.dense
