"""DeepFM (Guo et al. 2017, arXiv 1703.04247)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, Width, embed_fields
from mlet.models.first_order import FirstOrder, FirstOrderConfig
from mlet.models.fm import pairwise_sum
from mlet.models.mlp import MLP
from mlet.models.registry import MODELS


class DeepFMConfig(FirstOrderConfig):
    """DeepFM's settings.

    Attributes:
        mlp: hidden widths of the deep part (the paper: three layers of 400).
    """

    name: Literal["deepfm"] = "deepfm"
    mlp: list[Width] = Setting([400, 400, 400])


@MODELS.register("deepfm")
class DeepFM(CTRModel):
    """A factorization machine and an MLP on the same embeddings: ``y_FM + y_DNN`` (equation 1).

    The MLP takes the F embeddings end to end, followed by the dense features.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: DeepFMConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.embedding = embed_fields(config, schema)
        self.first_order = FirstOrder(config, schema)
        width = len(schema.fields) * config.dim + len(schema.dense)
        self.mlp = MLP([width, *config.mlp, 1], final_activation=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags)
        deep: Tensor = self.mlp(torch.cat([vectors.flatten(1), batch.dense], dim=1)).squeeze(1)
        linear: Tensor = self.first_order(batch)
        return linear + pairwise_sum(vectors) + deep
