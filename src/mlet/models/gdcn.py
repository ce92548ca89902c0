"""GDCN (Wang et al. 2023, arXiv 2311.04635): a deep and cross network with gates."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.schema import DatasetSchema
from mlet.models.base import ModelConfig, Width
from mlet.models.cross_and_deep import CrossAndDeep, Structure
from mlet.models.registry import MODELS


class GatedCrossNetwork(nn.Module):
    """L layers ``c_{l+1} = c_0 ⊙ (W_c c_l + b) ⊙ σ(W_g c_l) + c_l``.

    Shape:
        (B, w) → (B, w).
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.gates = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        for layer in self.crosses:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)

    def forward(self, c0: Tensor) -> Tensor:
        """The crossed features of every row."""
        c = c0
        for cross, gate in zip(self.crosses, self.gates, strict=True):
            c = c0 * cross(c) * torch.sigmoid(gate(c)) + c
        return c


class GDCNConfig(ModelConfig):
    """GDCN's settings.

    Attributes:
        cross_layers: L.
        mlp: hidden widths of the deep part (the paper: layers of 400).
        structure: ``parallel`` (GDCN-P) or ``stacked`` (GDCN-S).
    """

    name: Literal["gdcn"] = "gdcn"
    cross_layers: int = Setting(3, ge=1)
    mlp: list[Width] = Setting([400, 400])
    structure: Structure = "parallel"


@MODELS.register("gdcn")
class GDCN(CrossAndDeep):
    """Gated crosses and an MLP, beside or after one another: see `CrossAndDeep`."""

    def __init__(self, config: GDCNConfig, schema: DatasetSchema) -> None:
        super().__init__(
            config,
            schema,
            lambda width: GatedCrossNetwork(width, config.cross_layers),
            config.mlp,
            config.structure,
        )
