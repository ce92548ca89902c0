"""TT-Rec: tables as tensor trains (Yin et al. 2021, arXiv 2101.11714)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.nn.compression.base import COMPRESSIONS, Compression
from mlet.nn.field_tables import ComputedTables


@COMPRESSIONS.register("tensor_train")
class TensorTrain(Compression):
    """``W[i] = G₁[i₁] G₂[i₂] G₃[i₃]``, with n and d factored into three (equation 3).

    Core c is n_c × (r_{c−1} · d_c · r_c), with r₀ = r₃ = 1 and r₁ = r₂ the rank. The cores are
    normal, with the standard deviation that gives the product's entries the variance of an
    ordinary table; the paper's sampled normal is a refinement of that.

    Attributes:
        rank: of the train.
    """

    name: Literal["tensor_train"] = "tensor_train"
    rank: int = Setting(8, ge=1)

    def build(
        self, sizes: Mapping[str, int], dim: int, inner_dim: int | None, **options: Any
    ) -> TensorTrainTables:
        """Three cores a field."""
        return TensorTrainTables(sizes, dim, self.rank)


class TensorTrainTables(ComputedTables):
    """Three cores for each field, trained as dense parameters."""

    def __init__(self, sizes: Mapping[str, int], dim: int, rank: int) -> None:
        super().__init__(sizes)
        self.widths = _exact_factors(dim)
        self.heights = {name: _near_factors(size) for name, size in sizes.items()}
        ranks = (1, rank, rank, 1)
        self.cores = nn.ModuleList()
        for name, size in sizes.items():
            variance = 1 / (3 * size)
            std = (variance / rank**2) ** (1 / 6)
            shapes = [
                (height, before, width, after)
                for height, width, (before, after) in zip(
                    self.heights[name], self.widths, pairwise(ranks), strict=True
                )
            ]
            self.cores.append(
                nn.ParameterList(nn.Parameter(torch.randn(shape) * std) for shape in shapes)
            )

    def _cores_of(self, name: str) -> list[Tensor]:
        cores = self.cores[self.stack.names.index(name)]
        assert isinstance(cores, nn.ParameterList)
        return list(cores)

    def vectors(self, name: str, ids: Tensor) -> Tensor:
        """The products of the cores' slices, (U, d)."""
        first, second, third = self._cores_of(name)
        _, middle, last = self.heights[name]
        one, two, three = ids // (middle * last), ids // last % middle, ids % last
        # (U, 1, d₁, r) · (U, r, d₂, r) · (U, r, d₃, 1)
        rank = second.shape[1]
        left = first[one].flatten(1, 2)
        left = left @ second[two].flatten(2)
        left = left.reshape(ids.shape[0], left.shape[1] * second.shape[2], rank)
        return (left @ third[three].flatten(2)).flatten(1)

    def parts(self, name: str) -> dict[str, Tensor]:
        """The cores."""
        return {f"core{place}": core for place, core in enumerate(self._cores_of(name), start=1)}


def _near_factors(number: int, parts: int = 3) -> list[int]:
    """``parts`` near-equal integers whose product is at least ``number``, smallest first."""
    factors: list[int] = []
    left = number
    for remaining in range(parts, 0, -1):
        root = max(1, round(left ** (1 / remaining)))
        while root**remaining < left:
            root += 1
        factors.append(root)
        left = -(-left // root)
    return sorted(factors)


def _exact_factors(dim: int) -> tuple[int, int, int]:
    """The three integers of product d whose sum is smallest."""
    found = [
        (a, b, dim // a // b)
        for a in range(1, dim + 1)
        if dim % a == 0
        for b in range(a, dim // a + 1)
        if dim // a % b == 0 and dim // a // b >= b
    ]
    return min(found, key=sum)
