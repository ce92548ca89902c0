"""The projections of a sharded collection: small, and the same on every process."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mlet.distributed.projection_rules import ProjectionRule


class Projections:
    """W1 of each two-layer table, replicated.

    A process has the gradient of W1 from its own shards only. Those of all tables that are sharded
    alike are summed in one exchange, then every process makes the same step.

    Args:
        parameters: k × d, by table; tables without are ordinary ones.
        widths: d of each table, of ordinary ones too.
        on_shards: the tables whose vectors are projected before they are exchanged.
        group: the processes.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        widths: Mapping[str, int],
        on_shards: Collection[str],
        group: dist.ProcessGroup,
    ) -> None:
        self.parameters, self.widths, self._group = dict(parameters), dict(widths), group
        self.on_shards = frozenset(on_shards)
        self.rules: dict[str, ProjectionRule] = {}

    def stacked(self, tables: Sequence[tuple[str, int]], rows: int) -> Tensor:
        """(F × rows × d) of tables of one shape: of each so many rows of W1, from one on."""
        return torch.stack(
            [self.parameters[table].detach()[first : first + rows] for table, first in tables]
        )

    def outside(self, shard: Any) -> int:
        """What vectors are wide when they leave a shard: d, or as wide as its columns are."""
        width: int = self.widths[shard.name] if shard.name in self.on_shards else shard.local_cols
        return width

    def first(self, tables: Sequence[str]) -> list[str]:
        """Those of some tables that are projected before they are exchanged."""
        return [table for table in tables if table in self.on_shards]

    def last(self, tables: Sequence[str]) -> list[str]:
        """Those that are projected where they arrive."""
        return [name for name in tables if name in self.parameters and name not in self.on_shards]

    def update(self, tables: Sequence[str], gradients: Mapping[str, Tensor]) -> None:
        """Step the projections of some tables, by what this process has of their gradients.

        Args:
            tables: the same, in the same order, on every process.
            gradients: k × d; of a table that this process has no shard of there is none.
        """
        names = list(tables)
        if not names:
            return
        shares = [self.parameters[name].detach() for name in names]
        flat = torch.cat(
            [
                gradients[name].reshape(-1) if name in gradients else own.new_zeros(own.numel())
                for name, own in zip(names, shares, strict=True)
            ]
        )
        dist.all_reduce(flat, group=self._group)
        parts = flat.split([own.numel() for own in shares])
        for name, own, part in zip(names, shares, parts, strict=True):
            self.rules[name].update(part.view_as(own))
