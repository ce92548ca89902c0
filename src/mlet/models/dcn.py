"""Deep & Cross Network (Wang et al. 2017, arXiv 1708.05123)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.schema import DatasetSchema
from mlet.models.base import ModelConfig, Width
from mlet.models.cross_and_deep import CrossAndDeep
from mlet.models.registry import MODELS


class VectorCrossNetwork(nn.Module):
    """L layers ``x_{l+1} = x_0 ⟨x_l, w_l⟩ + b_l + x_l`` (equation 3).

    Shape:
        (B, w) → (B, w).
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(layers, width))
        self.biases = nn.Parameter(torch.zeros(layers, width))
        nn.init.xavier_normal_(self.weights)

    def forward(self, x0: Tensor) -> Tensor:
        """The crossed features of every row."""
        x = x0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = x0 * (x @ weight).unsqueeze(1) + bias + x
        return x


class DCNConfig(ModelConfig):
    """DCN's settings.

    Attributes:
        cross_layers: L (the paper: 6).
        mlp: hidden widths of the deep part (the paper: 2 layers of 1024).
    """

    name: Literal["dcn"] = "dcn"
    cross_layers: int = Setting(6, ge=1)
    mlp: list[Width] = Setting([1024, 1024], min_length=1)


@MODELS.register("dcn")
class DCN(CrossAndDeep):
    """Explicit crosses and an MLP side by side, a linear layer over both: see `CrossAndDeep`."""

    def __init__(self, config: DCNConfig, schema: DatasetSchema) -> None:
        super().__init__(
            config,
            schema,
            lambda width: VectorCrossNetwork(width, config.cross_layers),
            config.mlp,
            "parallel",
        )
