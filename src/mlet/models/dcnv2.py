"""DCN-V2 (Wang et al. 2021, arXiv 2008.13535): full matrices, or mixtures of low-rank experts."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.data.schema import DatasetSchema
from mlet.models.base import ModelConfig, Width
from mlet.models.cross_and_deep import CrossAndDeep, Structure
from mlet.models.registry import MODELS


class CrossNetwork(nn.Module):
    """L layers ``x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l`` (equation 1).

    Shape:
        (B, w) → (B, w).
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x0: Tensor) -> Tensor:
        """The crossed features of every row."""
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


class MixtureCrossNetwork(nn.Module):
    """L layers of K low-rank experts::

        x_{l+1} = Σ_i G_i(x_l) E_i(x_l) + x_l
        E_i(x_l) = x_0 ⊙ (U_i tanh(C_i tanh(V_iᵀ x_l)) + b)

    with U_i, V_i (w × r), C_i (r × r), and G the softmax of a linear gate.

    Shape:
        (B, w) → (B, w).
    """

    def __init__(self, width: int, layers: int, experts: int, rank: int) -> None:
        super().__init__()
        shape = (layers, experts)
        self.u = nn.Parameter(torch.empty(*shape, width, rank))
        self.v = nn.Parameter(torch.empty(*shape, width, rank))
        self.c = nn.Parameter(torch.empty(*shape, rank, rank))
        self.bias = nn.Parameter(torch.zeros(layers, width))
        self.gates = nn.ModuleList(nn.Linear(width, experts, bias=False) for _ in range(layers))
        for stack in (self.u, self.v, self.c):
            for matrix in stack.flatten(0, 1):
                nn.init.xavier_normal_(matrix)

    def forward(self, x0: Tensor) -> Tensor:
        """The crossed features of every row."""
        x = x0
        for layer, gate in enumerate(self.gates):
            inner = torch.tanh(torch.einsum("bw,kwr->bkr", x, self.v[layer]))
            inner = torch.tanh(torch.einsum("bkr,ksr->bks", inner, self.c[layer]))
            outer = torch.einsum("bkr,kwr->bkw", inner, self.u[layer]) + self.bias[layer]
            weights = torch.softmax(gate(x), dim=1)
            x = x0 * torch.einsum("bk,bkw->bw", weights, outer) + x
        return x


class DCNv2Config(ModelConfig):
    """DCN-V2's settings.

    Attributes:
        cross_layers: L.
        mlp: hidden widths of the deep part.
        structure: ``stacked`` (the MLP on the crossed features) or ``parallel`` (beside them).
        experts: K of the mixture of low-rank experts; null for one full matrix a layer.
        rank: r of an expert; of no use without ``experts``.
    """

    name: Literal["dcnv2"] = "dcnv2"
    cross_layers: int = Setting(2, ge=1)
    mlp: list[Width] = Setting([768, 768])
    structure: Structure = "stacked"
    experts: int | None = Setting(None, ge=1)
    rank: int = Setting(64, ge=1)


@MODELS.register("dcnv2")
class DCNv2(CrossAndDeep):
    """Explicit crosses of bounded degree and an MLP, one after or beside the other: see
    `CrossAndDeep`."""

    def __init__(self, config: DCNv2Config, schema: DatasetSchema) -> None:
        def cross(width: int) -> nn.Module:
            if config.experts is None:
                return CrossNetwork(width, config.cross_layers)
            return MixtureCrossNetwork(width, config.cross_layers, config.experts, config.rank)

        super().__init__(config, schema, cross, config.mlp, config.structure)
