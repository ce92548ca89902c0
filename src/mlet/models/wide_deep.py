"""Wide & Deep (Cheng et al. 2016, arXiv 1606.07792)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, Width, embed_fields
from mlet.models.first_order import FirstOrder, FirstOrderConfig
from mlet.models.mlp import MLP
from mlet.models.registry import MODELS


class WideDeepConfig(FirstOrderConfig):
    """Wide & Deep's settings.

    Attributes:
        mlp: hidden widths of the deep part (the paper: 1024, 512, 256).
    """

    name: Literal["wide_deep"] = "wide_deep"
    mlp: list[Width] = Setting([1024, 512, 256])


@MODELS.register("wide_deep")
class WideDeep(CTRModel):
    """A linear model and an MLP trained together: ``wide + deep``.

    The wide part has the single features; crossed ones are the user's to add as fields of the data.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: WideDeepConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.embedding = embed_fields(config, schema)
        self.first_order = FirstOrder(config, schema)
        width = len(schema.fields) * config.dim + len(schema.dense)
        self.mlp = MLP([width, *config.mlp, 1], final_activation=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags)
        deep: Tensor = self.mlp(torch.cat([vectors.flatten(1), batch.dense], dim=1)).squeeze(1)
        wide: Tensor = self.first_order(batch)
        return wide + deep
