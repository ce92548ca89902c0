"""The interface of the engine's backends."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mlet.engine.batch import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.rules import Rule


class Backend(Protocol):
    """The five steps of training a stack of T tables.

    ``table`` is the stacked matrix: W2 (Σn × k) of two-layer tables, with ``projection`` W1
    (T × k × d); or W (Σn × d) of ordinary ones, with ``projection`` None. Results are
    in `mlet.engine.rounding.compute_dtype`.
    """

    def find_distinct(
        self, table: Tensor, projection: Tensor | None, lookups: Lookups, stack: TableStack
    ) -> Distinct:
        """The distinct rows; a table that is cheaper to project than to tell its rows apart may be
        listed whole.

        Raises:
            IndexError: an id outside its table; names field, id and table size.
        """

    def embed(
        self, table: Tensor, projection: Tensor | None, lookups: Lookups, distinct: Distinct
    ) -> Tensor:
        """Outputs (B, T, d): rows are projected once, then handed to their lookups, or pooled."""

    def sum_gradients(self, grad: Tensor, lookups: Lookups, distinct: Distinct) -> Tensor:
        """(R × d): upstream gradients (B, T, d) summed over each row's lookups."""

    def factor_gradients(
        self, table: Tensor, projection: Tensor, gradient: RowGradient
    ) -> tuple[Tensor, Tensor]:
        """``∂W2`` of the gradient's rows (R × k), and ``∂W1`` (T × k × d)."""

    def update(
        self,
        table: Tensor,
        projection: Tensor | None,
        gradient: RowGradient,
        rule: Rule,
        state: tuple[Tensor, ...],
        *,
        projection_grad: bool = True,
    ) -> Tensor | None:
        """Apply ``rule`` to the touched rows of ``table`` and to their state, in place.

        16-bit tables are rounded stochastically. Returns ``∂W1`` at the rows' old values; None for
        ordinary tables, and where it is not asked for.
        """
