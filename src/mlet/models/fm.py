"""Factorization machine (Rendle 2010, "Factorization Machines", ICDM)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema
from mlet.models.base import CTRModel, embed_fields
from mlet.models.first_order import FirstOrder, FirstOrderConfig
from mlet.models.registry import MODELS


def pairwise_sum(vectors: Tensor) -> Tensor:
    """``Σ_{f<g} ⟨v_f, v_g⟩`` of F vectors (B, F, d): (B,), in time linear in F (Rendle, lemma 3.1).

    The sum over pairs is half of the square of the sum less the sum of the squares.
    """
    square_of_sum = vectors.sum(dim=1).square()
    sum_of_squares = vectors.square().sum(dim=1)
    return 0.5 * (square_of_sum - sum_of_squares).sum(dim=1)


class FMConfig(FirstOrderConfig):
    """A factorization machine has no settings of its own."""

    name: Literal["fm"] = "fm"


@MODELS.register("fm")
class FM(CTRModel):
    """``first order + Σ_{f<g} ⟨v_f, v_g⟩`` over the fields (Rendle, equation 1).

    Shape:
        `Batch` of B rows → logits (B,). Does not depend on the order of the fields.
    """

    def __init__(self, config: FMConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.embedding = embed_fields(config, schema)
        self.first_order = FirstOrder(config, schema)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""
        linear: Tensor = self.first_order(batch)
        return linear + pairwise_sum(self.embedding(batch.ids, batch.bags))
