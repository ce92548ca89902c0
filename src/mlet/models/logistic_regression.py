"""Logistic regression: one weight for each category."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, embed_fields
from mlet.models.registry import MODELS


class LogisticRegressionConfig(ModelConfig):
    """Logistic regression has no settings of its own; a category's weight is a table of width 1.

    With ``inner_dim`` the weights are two-layer too; other models keep theirs ordinary without
    ``two_layer_first_order``.
    """

    name: Literal["lr"] = "lr"
    dim: Literal[1] = 1


@MODELS.register("lr")
class LogisticRegression(CTRModel):
    """``b + Σ_f w_f[id_f] + ⟨w, dense⟩``; bags by ``pooling``.

    Fields that share a vocabulary have weights of their own each.

    Shape:
        `Batch` of B rows → logits (B,). Does not depend on the order of the fields.
    """

    def __init__(self, config: LogisticRegressionConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.embedding = embed_fields(config, schema, share=False)
        self.dense = nn.Parameter(torch.zeros(len(schema.dense)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        weights: Tensor = self.embedding(batch.ids, batch.bags)
        return self.bias + weights.sum(dim=(1, 2)) + batch.dense @ self.dense
