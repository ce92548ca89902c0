"""xDeepFM (Lian et al. 2018, arXiv 1803.05170)."""

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


class CompressedInteraction(nn.Module):
    """The compressed interaction network (CIN).

    With X⁰ the F embeddings as rows, layer k has H_k rows::

        X^k_h = Σ_i Σ_j W^{k,h}_ij (X^{k−1}_i ⊙ X^0_j)

    and gives the sum of each row over the embedding dimension.

    Shape:
        (B, F, d) → (B, Σ_k H_k).
    """

    def __init__(self, fields: int, maps: list[int]) -> None:
        super().__init__()
        before = [fields, *maps[:-1]]
        self.weights = nn.ParameterList(
            nn.init.xavier_uniform_(torch.empty(outputs, inputs * fields)).view(
                outputs, inputs, fields
            )
            for inputs, outputs in zip(before, maps, strict=True)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """The pooled feature maps of all layers, end to end."""
        # The embedding dimension goes before the rows: each layer is then one matrix product of the
        # (B · d) × (H_{k−1} · F) outer products with the weights.
        first = vectors.transpose(1, 2)
        x, pooled = first, []
        for weight in self.weights:
            outer = (x.unsqueeze(3) * first.unsqueeze(2)).flatten(2)
            x = outer @ weight.flatten(1).t()
            pooled.append(x.sum(dim=1))
        return torch.cat(pooled, dim=1)


class XDeepFMConfig(FirstOrderConfig):
    """xDeepFM's settings.

    Attributes:
        maps: feature maps H_k of the CIN's layers (the paper: 200 each on Criteo).
        mlp: hidden widths of the deep part (the paper: 400 each).
    """

    name: Literal["xdeepfm"] = "xdeepfm"
    maps: list[Width] = Setting([200, 200], min_length=1)
    mlp: list[Width] = Setting([400, 400])


@MODELS.register("xdeepfm")
class XDeepFM(CTRModel):
    """A linear part, a CIN (without activation) and an MLP on the same embeddings, added up.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(self, config: XDeepFMConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.embedding = embed_fields(config, schema)
        self.first_order = FirstOrder(config, schema)
        fields = len(schema.fields)
        self.cin = CompressedInteraction(fields, config.maps)
        self.cin_head = nn.Linear(sum(config.maps), 1, bias=False)
        self.mlp = MLP(
            [fields * config.dim + len(schema.dense), *config.mlp, 1], final_activation=False
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags)
        deep: Tensor = self.mlp(torch.cat([vectors.flatten(1), batch.dense], dim=1)).squeeze(1)
        crossed: Tensor = self.cin_head(self.cin(vectors)).squeeze(1)
        linear: Tensor = self.first_order(batch)
        return linear + crossed + deep
