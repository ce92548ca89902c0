"""Feature hashing (Weinberger et al. 2009, arXiv 0902.2206)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor

from mlet.engine import Lookups, TableStack
from mlet.nn.compression.base import COMPRESSIONS, Compression
from mlet.nn.plain_lookups import IdBounds
from mlet.nn.stacked_tables import StackedTables


@COMPRESSIONS.register("hashing")
class Hashing(Compression):
    """Categories share rows by a hash: ``W[h(id)]`` with ``h: n → m``, ``m = ⌈n / collisions⌉``.

    The first equation of the paper without its sign hash, as is usual for embedding tables.

    Attributes:
        collisions: categories to a row, on average.
    """

    name: Literal["hashing"] = "hashing"
    collisions: int = Setting(4, ge=2)

    takes_inner_dim: ClassVar[bool] = True

    def build(
        self, sizes: Mapping[str, int], dim: int, inner_dim: int | None, **options: Any
    ) -> HashedTables:
        """Tables of ``⌈n / collisions⌉`` rows."""
        return HashedTables(sizes, self.collisions, dim, inner_dim, **options)


class HashedTables(StackedTables):
    """Stacked tables whose rows several categories share; takes what `StackedTables` takes."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        collisions: int,
        dim: int,
        inner_dim: int | None,
        **options: Any,
    ) -> None:
        rows = {name: -(-size // collisions) for name, size in sizes.items()}
        super().__init__(rows, dim, inner_dim, **options)
        self.categories = TableStack(tuple(sizes), tuple(sizes.values()))
        self._categories = IdBounds(self.categories)

    def forward(self, lookups: Lookups) -> Tensor:
        """Embed a batch's ids: (B, T, d)."""
        hashed = [
            hash_ids(self.categories.ids_of(lookups, place), self.seeds[name], rows)
            for place, (name, rows) in enumerate(self.sizes.items())
        ]
        return super().forward(replace(lookups, ids=torch.cat(hashed)))

    def checked(self, ids: Tensor, first: int, *, traced: bool) -> Tensor:
        """Categories, not rows."""
        return self._categories.check(ids, first, traced=traced)

    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """The rows that ids are hashed to."""
        tables = list(self.sizes.items())[first : first + ids.shape[1]]
        hashed = [
            hash_ids(column, self.seeds[name], rows)
            for column, (name, rows) in zip(ids.unbind(1), tables, strict=True)
        ]
        return super().plain_vectors(torch.stack(hashed, dim=1), first)

    def table(self, name: str) -> Tensor:
        """The n × d table that a field stands for."""
        place = self.stack.names.index(name)
        ids = torch.arange(self.categories.sizes[place], device=self.stacked.device)
        return super().table(name)[hash_ids(ids, self.seeds[name], self.sizes[name])]

    def collapsed(self, name: str) -> dict[str, Tensor]:
        """The m × d table."""
        return {"weight": super().table(name)}


def hash_ids(ids: Tensor, seed: int | Tensor, buckets: int | Tensor) -> Tensor:
    """A fixed hash of ids to ``0 … buckets − 1``: the finaliser of SplitMix64, in 63 bits."""
    stream = torch.as_tensor(seed, device=ids.device) + 1
    mixed = ids * 0x1E3779B97F4A7C15 + stream * 0x3F58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 30)) * 0x3F58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * 0x14D049BB133111EB
    return ((mixed ^ (mixed >> 31)) & (2**62 - 1)) % buckets
