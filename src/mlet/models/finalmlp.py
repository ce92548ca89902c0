"""FinalMLP (Mao et al. 2023, arXiv 2304.00902): two MLPs on gated features, fused bilinearly."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, ModelConfig, Width, embed_fields
from mlet.models.mlp import MLP
from mlet.models.registry import MODELS


class FeatureGate(nn.Module):
    """``h = 2σ(MLP(x)) ⊙ e``: stream-specific feature selection.

    x is the embedding of the chosen fields, or a learnt vector where none is chosen.

    Shape:
        vectors (B, F, d) and features e (B, w) → (B, w).
    """

    def __init__(self, places: list[int], dim: int, width: int, hidden: list[int]) -> None:
        super().__init__()
        self.places = places
        if not places:
            self.context = nn.Parameter(torch.zeros(1, dim))
        inputs = max(1, len(places)) * dim
        self.mlp = MLP([inputs, *hidden, width], final_activation=False)

    def forward(self, vectors: Tensor, features: Tensor) -> Tensor:
        """The gated features."""
        if self.places:
            x = vectors[:, self.places].flatten(1)
        else:
            x = self.context.expand(features.shape[0], -1)
        return 2.0 * torch.sigmoid(self.mlp(x)) * features


class BilinearFusion(nn.Module):
    """``b + w₁ᵀ o₁ + w₂ᵀ o₂ + Σ_h o₁⁽ʰ⁾ᵀ W⁽ʰ⁾ o₂⁽ʰ⁾`` over H heads.

    Shape:
        (B, u) and (B, v) → (B,); H divides u and v.
    """

    def __init__(self, first: int, second: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first = nn.Linear(first, 1)
        self.second = nn.Linear(second, 1, bias=False)
        self.weights = nn.Parameter(torch.empty(heads, first // heads, second // heads))
        for weight in self.weights:
            nn.init.xavier_normal_(weight)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """The fused logit of every row."""
        rows = one.shape[0]
        crossed = torch.einsum(
            "bhu,huv,bhv->b",
            one.view(rows, self.heads, -1),
            self.weights,
            two.view(rows, self.heads, -1),
        )
        linear: Tensor = (self.first(one) + self.second(two)).squeeze(1)
        return linear + crossed


class FinalMLPConfig(ModelConfig):
    """FinalMLP's settings.

    Attributes:
        mlp1, mlp2: widths of the two streams, the last one being what is fused.
        gate_mlp: hidden widths of the gates.
        gate1, gate2: names of the fields that gate each stream; none for a learnt vector.
        heads: H; divides the last widths of both streams.
    """

    name: Literal["finalmlp"] = "finalmlp"
    mlp1: list[Width] = Setting([400, 400, 400], min_length=1)
    mlp2: list[Width] = Setting([400, 400, 400], min_length=1)
    gate_mlp: list[Width] = Setting([64])
    gate1: list[str] = Setting(default_factory=list)
    gate2: list[str] = Setting(default_factory=list)
    heads: int = Setting(1, ge=1)


@MODELS.register("finalmlp")
class FinalMLP(CTRModel):
    """Two MLPs on the same features, each with a gate of its own.

    The features e hold the F embeddings end to end, then the dense ones.

    Shape:
        `Batch` of B rows → logits (B,).

    Raises:
        ValueError: ``heads`` does not divide a stream's last width, or a gate names no field.
    """

    def __init__(self, config: FinalMLPConfig, schema: DatasetSchema) -> None:
        super().__init__()
        for width in (config.mlp1[-1], config.mlp2[-1]):
            if width % config.heads:
                raise ValueError(f"heads={config.heads} does not divide a last width of {width}")
        self.embedding = embed_fields(config, schema)
        names = [field.name for field in self.embedding.fields]
        for name in (*config.gate1, *config.gate2):
            if name not in names:
                raise ValueError(f"gate: no field {name!r}; the fields are {', '.join(names)}")
        width = len(names) * config.dim + len(schema.dense)
        self.gate1, self.gate2 = (
            FeatureGate([names.index(n) for n in chosen], config.dim, width, config.gate_mlp)
            for chosen in (config.gate1, config.gate2)
        )
        self.mlp1 = MLP([width, *config.mlp1], final_activation=True)
        self.mlp2 = MLP([width, *config.mlp2], final_activation=True)
        self.fusion = BilinearFusion(config.mlp1[-1], config.mlp2[-1], config.heads)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        vectors = self.embedding(batch.ids, batch.bags)
        features = torch.cat([vectors.flatten(1), batch.dense], dim=1)
        one = self.mlp1(self.gate1(vectors, features))
        two = self.mlp2(self.gate2(vectors, features))
        logits: Tensor = self.fusion(one, two)
        return logits
