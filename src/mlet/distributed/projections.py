"""The projections of a sharded collection: small, and the same on every process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        widths: what each table's vectors are wide outside, d, ordinary ones' too.
        group: the processes.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        widths: Mapping[str, int],
        group: dist.ProcessGroup,
    ) -> None:
        self.parameters, self.widths, self._group = dict(parameters), dict(widths), group
        self.rules: dict[str, ProjectionRule] = {}

    def stacked(self, tables: Sequence[str]) -> Tensor:
        """(F × k × d) of tables of one shape."""
        return torch.stack([self.parameters[table].detach() for table in tables])

    def update(self, tables: Sequence[str], gradients: Mapping[str, Tensor]) -> None:
        """Step the projections of some tables, by what this process has of their gradients.

        Args:
            tables: the same, in the same order, on every process; ordinary ones are left out.
            gradients: k × d; of a table that this process has no shard of there is none.
        """
        names = [table for table in tables if table in self.parameters]
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
