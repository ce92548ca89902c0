"""Factored tables that stay factored when served: low rank, and mixed dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.nn.compression.base import COMPRESSIONS, Compression
from mlet.nn.factored import INNER, PROJECTION, Factors
from mlet.nn.field_dims import field_dim
from mlet.nn.field_tables import FieldTables
from mlet.nn.stacked_tables import StackedTables

#: The factors' names, by those that model files of mlet 0.1 have for them.
_PARTS = {INNER: "left", PROJECTION: "right"}


@COMPRESSIONS.register("low_rank")
class LowRank(Compression):
    """``W = A B`` with ``A: n × r``, ``B: r × d`` and r < d, in training and when served.

    What MLET is not: there the inner dimension is above d and the product is collapsed.

    Attributes:
        rank: r.
    """

    name: Literal["low_rank"] = "low_rank"
    rank: int = Setting(2, ge=1)

    def build(
        self, sizes: Mapping[str, int], dim: int, inner_dim: int | None, **options: Any
    ) -> LowRankTables:
        """Factors of rank r, of the variance of an ordinary table."""
        return LowRankTables(sizes, dim, self.rank, **{**options, "init": "variance_matched"})


class LowRankTables(StackedTables):
    """Two factors for each field, neither of them collapsed."""

    def _check_inner_dim(self, inner_dim: int, dim: int) -> None:
        if inner_dim > dim:
            raise ValueError(
                f"low_rank: rank {inner_dim} is above the embedding dimension {dim} of "
                f"{', '.join(self.sizes)}; lower it"
            )

    def parts(self, name: str) -> dict[str, Tensor]:
        """A (n × r) and B (r × d): names that nobody takes for factors to be collapsed."""
        return dict(zip(_PARTS.values(), super().parts(name).values(), strict=True))

    @property
    def projection_std(self) -> None:
        """None: B is no wide projection, and steps are not to be made as long as others for it."""

    def factors(self, name: str) -> Factors:
        """The product: it is a table like any other."""
        return Factors(self.table(name), None)

    def factor_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """None: these are not to be collapsed."""
        return iter(())

    def _hold(self, name: str, table: Tensor) -> None:
        """Cut to the rank: the truncated singular value decomposition ``W ≈ (W V) Vᵀ`` with V
        (d × r) the leading right singular vectors."""
        wide = table.double()
        _, basis = torch.linalg.eigh(wide.T @ wide)  # ascending
        rank = self.projection.shape[1]
        leading = basis[:, -rank:]
        parts = self.parts(name)
        parts["left"].copy_(wide @ leading)
        parts["right"].copy_(leading.T)

    def collapsed(self, name: str) -> dict[str, Tensor]:
        """Both factors, in the dtype of the outputs."""
        parts = FieldTables.collapsed(self, name)
        return {part: tensor.to(self.projection.dtype) for part, tensor in parts.items()}

    def load_collapsed(self, name: str, given: Mapping[str, Tensor]) -> None:
        """Fill both factors."""
        renamed = {_PARTS.get(part, part): tensor for part, tensor in given.items()}
        FieldTables.load_collapsed(self, name, renamed)


@COMPRESSIONS.register("mixed_dimension")
class MixedDimension(Compression):
    """Narrower tables for larger fields (Ginart et al. 2019, arXiv 1909.11810).

    Field f has ``d_f = d · (n_f / min n)^−α``, rounded to the nearest power of two (algorithm 2,
    with fields as blocks of popularity ``1 / n_f``), and a projection d_f × d that is served too.

    Attributes:
        alpha: α; 0 gives all fields d.
    """

    name: Literal["mixed_dimension"] = "mixed_dimension"
    alpha: float = Setting(0.3, ge=0, le=1)

    def of_field(self, num_embeddings: int, smallest: int, dim: int) -> LowRank | None:
        """An ordinary table where ``d_f`` is d, else factors of rank ``d_f``."""
        width = field_dim(num_embeddings, smallest, dim, self.alpha)
        return None if width == dim else LowRank(rank=width)

    def build(
        self, sizes: Mapping[str, int], dim: int, inner_dim: int | None, **options: Any
    ) -> LowRankTables:
        """Not used: `of_field` gives every field a method of its own."""
        raise TypeError("mixed dimensions are low-rank tables, field by field")
