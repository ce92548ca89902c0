"""The linear part that many click models share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlet import nn as mlet_nn
from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import ModelConfig, embed_fields


class FirstOrderConfig(ModelConfig):
    """Settings of models with a linear part.

    Attributes:
        two_layer_first_order: train the linear part's tables of width 1 as products too, with the
            same k. By default they are ordinary.
    """

    two_layer_first_order: bool = False


class FirstOrder(nn.Module):
    """A weight for each category and each dense feature: ``b + Σ_f w_f[id_f] + ⟨w, dense⟩``.

    Fields that share a vocabulary have weights of their own each.
    The weights start at zero; the width-1 tables are ordinary unless ``two_layer_first_order``.

    Shape:
        `Batch` of B rows → (B,).
    """

    def __init__(self, config: FirstOrderConfig, schema: DatasetSchema) -> None:
        super().__init__()
        layers = config if config.two_layer_first_order else config.single_layer()
        ordinary = {"compression": None, "table_dtype": "float32", "table_bias": False}
        same = {"dim": 1, "field_dims": {}, "dim_exponent": 0.0}
        narrow = layers.model_copy(update={**same, **ordinary})
        self.tables: mlet_nn.FieldEmbedding = embed_fields(narrow, schema, share=False)
        for field in self.tables.fields:
            # Of a product, W2 alone: were W1 zero as well, neither would ever move.
            nn.init.zeros_(self.tables.factors(field.name).inner)
        self.dense = nn.Parameter(torch.zeros(len(schema.dense)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        """The linear term of every row, (B,)."""
        weights: Tensor = self.tables(batch.ids, batch.bags)
        return self.bias + weights.sum(dim=(1, 2)) + batch.dense @ self.dense
