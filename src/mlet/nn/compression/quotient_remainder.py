"""The quotient–remainder trick (Shi et al. 2019, arXiv 1909.02107)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.engine import Lookups
from mlet.nn.compression.base import COMPRESSIONS, Compression
from mlet.nn.factored import WEIGHT, qualified
from mlet.nn.field_tables import ComputedTables
from mlet.nn.stacked_tables import StackedTables

_TABLES = ("remainder", "quotient")


@COMPRESSIONS.register("quotient_remainder")
class QuotientRemainder(Compression):
    """Two small tables, so that every category has a vector of its own.

    ``W[id] = R[id mod m] ⊙ Q[⌊id / m⌋]`` with ``m = ⌈n / collisions⌉`` (section 2, algorithm 2,
    element-wise product). With ``inner_dim``, R, the bulk, is two-layer.

    Attributes:
        collisions: categories to a row of R; Q has as many rows.
    """

    name: Literal["quotient_remainder"] = "quotient_remainder"
    collisions: int = Setting(4, ge=2)

    takes_inner_dim: ClassVar[bool] = True

    def build(
        self, sizes: Mapping[str, int], dim: int, inner_dim: int | None, **options: Any
    ) -> QuotientRemainderTables:
        """Tables of m and ``⌈n / m⌉`` rows."""
        return QuotientRemainderTables(sizes, self.collisions, dim, inner_dim, **options)


class QuotientRemainderTables(ComputedTables):
    """R and Q of every field. Q starts at ones, so that training starts as with R alone."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        collisions: int,
        dim: int,
        inner_dim: int | None,
        **options: Any,
    ) -> None:
        super().__init__(sizes)
        self.rows = {name: -(-size // collisions) for name, size in sizes.items()}
        self.remainders = nn.ModuleList(
            StackedTables({name: rows}, dim, inner_dim, **options)
            for name, rows in self.rows.items()
        )
        self.quotients = nn.ModuleList(
            StackedTables({name: -(-size // self.rows[name])}, dim, None, **options)
            for name, size in sizes.items()
        )
        for table in self.quotients:
            nn.init.ones_(table.stacked)  # type: ignore[arg-type]

    def _tables(self, name: str) -> tuple[StackedTables, StackedTables]:
        place = self.stack.names.index(name)
        remainder, quotient = self.remainders[place], self.quotients[place]
        assert isinstance(remainder, StackedTables)
        assert isinstance(quotient, StackedTables)
        return remainder, quotient

    def vectors(self, name: str, ids: Tensor) -> Tensor:
        """The products of both rows, (U, d)."""
        remainder, quotient = self._tables(name)
        rows = self.rows[name]
        first: Tensor = remainder(Lookups.gather((ids % rows).unsqueeze(1)))
        second: Tensor = quotient(Lookups.gather((ids // rows).unsqueeze(1)))
        return (first * second).squeeze(1)

    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """The same without the engine."""
        names = self.stack.names[first : first + ids.shape[1]]
        products = []
        for name, column in zip(names, ids.split(1, dim=1), strict=True):
            remainder, quotient = self._tables(name)
            rows = self.rows[name]
            one = remainder.plain_vectors(column % rows, 0)
            products.append(one * quotient.plain_vectors(column // rows, 0))
        return torch.cat(products, dim=1)

    def parts(self, name: str) -> dict[str, Tensor]:
        """The parts of R and of Q, behind the names of these."""
        return {
            qualified(table_name, part): tensor
            for table_name, table in zip(_TABLES, self._tables(name), strict=True)
            for part, tensor in table.parts(name).items()
        }

    def collapsed(self, name: str) -> dict[str, Tensor]:
        """R (m × d), collapsed if it is two-layer, and Q (⌈n / m⌉ × d)."""
        return {
            table_name: table.table(name)
            for table_name, table in zip(_TABLES, self._tables(name), strict=True)
        }

    def load_collapsed(self, name: str, given: Mapping[str, Tensor]) -> None:
        """Fill both tables."""
        behind = {
            qualified(part, WEIGHT) if part in _TABLES else part: tensor
            for part, tensor in given.items()
        }
        super().load_collapsed(name, behind)
