"""Neural factorization machine (He and Chua 2017, arXiv 1708.05027)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field as Setting
from torch import Tensor

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, Width, embed_fields
from mlet.models.first_order import FirstOrder, FirstOrderConfig
from mlet.models.mlp import MLP
from mlet.models.registry import MODELS


def bi_interaction(vectors: Tensor) -> Tensor:
    """Bi-interaction pooling ``Σ_{f<g} v_f ⊙ v_g`` of (B, F, d): (B, d), in time linear in F."""
    return 0.5 * (vectors.sum(dim=1).square() - vectors.square().sum(dim=1))


class NFMConfig(FirstOrderConfig):
    """NFM's settings.

    Attributes:
        mlp: hidden widths on top of the pooled interactions (the paper: one layer as wide as d).
    """

    name: Literal["nfm"] = "nfm"
    mlp: list[Width] = Setting([64])


@MODELS.register("nfm")
class NFM(CTRModel):
    """A linear part and an MLP on bi-interaction pooling.

    Dense features enter through the linear part, as real-valued features do in the paper's first
    order.

    Shape:
        `Batch` of B rows → logits (B,). Does not depend on the order of the fields.
    """

    def __init__(self, config: NFMConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.embedding = embed_fields(config, schema)
        self.first_order = FirstOrder(config, schema)
        self.mlp = MLP([config.dim, *config.mlp, 1], final_activation=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        pooled = bi_interaction(self.embedding(batch.ids, batch.bags))
        deep: Tensor = self.mlp(pooled).squeeze(1)
        linear: Tensor = self.first_order(batch)
        return linear + deep
