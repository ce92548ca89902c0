"""DLRM (Naumov et al. 2019, arXiv 1906.00091)."""

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


class DLRMConfig(ModelConfig):
    """DLRM's settings; presets ``criteo-kaggle`` and ``avazu`` have the MLET authors' widths.

    Attributes:
        bottom_mlp: hidden widths between the dense features and the d-wide output.
        top_mlp: hidden widths between the interactions and the logit.
        interaction: ``dot`` (inner products of all pairs) or ``cat`` (all vectors end to end).
    """

    name: Literal["dlrm"] = "dlrm"
    bottom_mlp: list[Width] = Setting([64, 32])
    top_mlp: list[Width] = Setting([64, 32])
    interaction: Literal["dot", "cat"] = "dot"

    def products_alone(self) -> bool:
        """Of the embeddings, inner products are all that ``dot`` gives to the top MLP."""
        return self.interaction == "dot"


@MODELS.register("dlrm")
class DLRM(CTRModel):
    """Embeddings and a bottom MLP on dense features, their pairwise products, a top MLP.

    With ``x = bottom(dense)`` (B, d) and E the F embeddings, the vectors are T = [x, E]
    (B, F + 1, d). ``dot`` feeds the top MLP with x and the inner products ``T_i · T_j, i > j``;
    ``cat`` with T itself. Without dense features there is no bottom MLP and no x.

    Shape:
        `Batch` of B rows → logits (B,).

    Raises:
        ValueError: ``dot`` has fewer than two vectors to multiply.
    """

    def __init__(self, config: DLRMConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.interaction = config.interaction
        self.embedding = embed_fields(config, schema)
        dense, vectors = len(schema.dense), len(schema.fields)
        self.bottom_mlp = None
        if dense:
            self.bottom_mlp = MLP([dense, *config.bottom_mlp, config.dim], final_activation=True)
            vectors += 1
        if self.interaction == "cat":
            width = vectors * config.dim
        elif vectors < 2:
            raise ValueError("interaction 'dot' needs at least two fields; use interaction: cat")
        else:
            width = vectors * (vectors - 1) // 2 + (config.dim if dense else 0)
        self.top_mlp = MLP([width, *config.top_mlp, 1], final_activation=False)
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("_pairs", row * vectors + column, persistent=False)

    _pairs: Tensor

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        embedded = self.embedding(batch.ids, batch.bags)
        if self.bottom_mlp is None:
            vectors, first = embedded, []
        else:
            x = self.bottom_mlp(batch.dense)
            vectors, first = torch.cat([x.unsqueeze(1), embedded], dim=1), [x]
        if self.interaction == "cat":
            features = vectors.flatten(1)
        else:
            products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
            features = torch.cat([*first, products.index_select(1, self._pairs)], dim=1)
        logits: Tensor = self.top_mlp(features).squeeze(1)
        return logits
