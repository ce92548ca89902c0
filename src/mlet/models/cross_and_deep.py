"""What DCN, DCN-V2 and GDCN share: a cross network and an MLP, beside or after one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, embed_fields
from mlet.models.mlp import MLP

Structure = Literal["stacked", "parallel"]


class CrossAndDeep(CTRModel):
    """A cross network and an MLP on ``x_0``: the F embeddings end to end, then the dense features.

    The logit is linear in the MLP's last hidden layer on top of the crosses (``stacked``), or in
    the crosses and the MLP's last hidden layer beside them (``parallel``).

    Args:
        config: of the model.
        schema: of the data set.
        cross: makes the cross network, (B, w) → (B, w), for the width w of ``x_0``.
        mlp: hidden widths.
        structure: ``stacked`` or ``parallel``.

    Shape:
        `Batch` of B rows → logits (B,).
    """

    def __init__(
        self,
        config: ModelConfig,
        schema: DatasetSchema,
        cross: Callable[[int], nn.Module],
        mlp: Sequence[int],
        structure: Structure,
    ) -> None:
        super().__init__()
        self.structure = structure
        self.embedding = embed_fields(config, schema)
        width = len(schema.fields) * config.dim + len(schema.dense)
        self.cross = cross(width)
        self.mlp = MLP([width, *mlp], final_activation=True)
        deep = mlp[-1] if mlp else width
        self.head = nn.Linear(deep + (width if structure == "parallel" else 0), 1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags).flatten(1)
        x0 = torch.cat([vectors, batch.dense], dim=1)
        crossed = self.cross(x0)
        if self.structure == "stacked":
            features = self.mlp(crossed)
        else:
            features = torch.cat([crossed, self.mlp(x0)], dim=1)
        logits: Tensor = self.head(features).squeeze(1)
        return logits
