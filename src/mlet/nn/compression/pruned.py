"""Magnitude pruning: of a trained table the largest entries are kept, the others are zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor

from mlet.engine import Lookups
from mlet.nn.compression.base import COMPRESSIONS, Compression
from mlet.nn.factored import Factors
from mlet.nn.stacked_tables import StackedTables

#: Bytes of a kept entry: a float32 and its column.
ENTRY_BYTES = 5
#: Columns that one byte tells apart.
_MAX_DIM = 256


@COMPRESSIONS.register("pruned")
class Pruned(Compression):
    """Of each table the entries of largest magnitude (Han et al. 2015, arXiv 1506.02626).

    Which ones is decided where training begins: by the run that it starts from, else by the random
    initialisation. The others stay zero. Served are the kept entries row by row, each with its
    column in one byte.

    Attributes:
        keep: share of the entries that are kept.
    """

    name: Literal["pruned"] = "pruned"
    keep: float = Setting(0.1, gt=0, le=1)

    @classmethod
    def at_bytes_of(cls, dim: int, wide: int) -> Pruned:
        """Of tables of dimension ``wide`` as much as takes the bytes of tables of dimension d.

        A row takes 4 bytes beside its entries, which say where they begin.

        Raises:
            ValueError: d = 1 leaves no bytes for entries.
        """
        if dim < 2:
            raise ValueError("pruned: of the 4 bytes of a row at d = 1 none is left for entries")
        return cls(keep=4 * (dim - 1) / (ENTRY_BYTES * wide))

    def build(
        self, sizes: Mapping[str, int], dim: int, inner_dim: int | None, **options: Any
    ) -> PrunedTables:
        """Tables of which ``keep`` of the entries are not zero."""
        return PrunedTables(sizes, dim, self.keep, **options)


class PrunedTables(StackedTables):
    """Ordinary tables with entries that are kept at zero; takes what `StackedTables` takes.

    Attributes:
        kept: (Σn × d) bool.
    """

    kept: Tensor

    def __init__(self, sizes: Mapping[str, int], dim: int, keep: float, **options: Any) -> None:
        if dim > _MAX_DIM:
            raise ValueError(f"pruned: columns take a byte each, of at most {_MAX_DIM}, not {dim}")
        super().__init__(sizes, dim, None, **options)
        self.keep = keep
        self.register_buffer("kept", torch.zeros_like(self.weight, dtype=torch.bool))
        for name in sizes:
            self._hold(name, super().table(name))

    def entries(self, name: str) -> int:
        """How many entries of a table are kept."""
        return max(1, round(self.keep * self.sizes[name] * self.dim))

    def _kept(self, name: str) -> Tensor:
        return self.kept[self.starts[name] : self.starts[name] + self.sizes[name]]

    def _hold(self, name: str, table: Tensor) -> None:
        largest = table.abs().flatten().topk(self.entries(name), sorted=False).indices
        kept = torch.zeros(table.numel(), dtype=torch.bool, device=table.device)
        kept[largest] = True
        self._kept(name).copy_(kept.view_as(table))
        self.rows_of(name).copy_(table * self._kept(name))

    def forward(self, lookups: Lookups) -> Tensor:
        """Embed a batch's ids: (B, T, d)."""
        # What the last step made of pruned entries is undone before anybody reads them. A second
        # call changes nothing, so that autograd need not know.
        weight = self.weight.data
        for place, name in enumerate(self.sizes):
            rows = self.stack.ids_of(lookups, place).unique() + self.starts[name]
            weight[rows] = weight[rows] * self.kept[rows]
        return super().forward(lookups)

    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """The kept entries of rows."""
        return super().plain_vectors(ids, first) * self.kept[self.bounds.rows(ids, first)]

    def table(self, name: str) -> Tensor:
        """One table as it is served (n × d): a copy."""
        return super().table(name) * self._kept(name)

    def factors(self, name: str) -> Factors:
        """The table."""
        return Factors(self.table(name), None)

    def parts(self, name: str) -> dict[str, Tensor]:
        """The rows, and which of their entries are kept."""
        return {**super().parts(name), "kept": self._kept(name)}

    def collapsed(self, name: str) -> dict[str, Tensor]:
        """``values`` (E,) float32 of the kept entries, row by row; ``columns`` (E,) uint8; and
        ``offsets`` (n + 1,) int32: row i's are ``offsets[i]`` to ``offsets[i + 1]``."""
        kept = self._kept(name)
        ends = kept.sum(dim=1).cumsum(0)
        return {
            "values": self.table(name)[kept],
            "columns": kept.nonzero()[:, 1].to(torch.uint8),
            "offsets": torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
        }

    @torch.no_grad()
    def load_collapsed(self, name: str, given: Mapping[str, Tensor]) -> None:
        """Fill a table with what `collapsed` gave."""
        expected = {"values": self.entries(name), "columns": self.entries(name)}
        expected["offsets"] = self.sizes[name] + 1
        for part, length in expected.items():
            if part not in given or given[part].shape != (length,):
                shape = tuple(given[part].shape) if part in given else "none"
                raise ValueError(f"{part} of field {name!r}: expected {(length,)}, got {shape}")
        if unknown := sorted(set(given) - set(expected)):
            raise ValueError(f"field {name!r}: unknown {', '.join(unknown)}")
        lengths = given["offsets"].long().diff()
        rows = torch.arange(self.sizes[name], device=lengths.device).repeat_interleave(lengths)
        columns = given["columns"].long()
        self.rows_of(name).zero_()
        self._kept(name).zero_()
        self.rows_of(name)[rows, columns] = given["values"].to(self.weight.dtype)
        self._kept(name)[rows, columns] = True
