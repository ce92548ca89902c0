"""The vector of id 0, which stands for categories that training never saw.

Where every category of the training rows has an id of its own, no training row has id 0, and its
vector would stay as it was drawn. What a new category is like is best told by those that were seen
least: they are what a new one is one row later. A mean that weighs by counts, or takes all
categories alike, is that of frequent ones, which new ones are not (measured: docs/training.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlet.data import PreparedDataset
from mlet.models import CTRModel
from mlet.nn.factored import block_rows
from mlet.nn.stacked_tables import StackedTables
from mlet.training.processes import Processes

#: Share of a field's categories that stand for those never seen, and how many they are at least.
_SHARE, _AT_LEAST = 0.1, 10


class UnknownRows:
    """Row 0 of a model's tables, where no training row has id 0.

    Args:
        model: tables that share rows between categories, or compute them, are left alone.
        data: what it is trained on.
        processes: that train it.
    """

    def __init__(self, model: CTRModel, data: PreparedDataset, processes: Processes) -> None:
        self._processes = processes
        least = {}
        for field in data.schema.fields:
            if not data.vocabulary(field.name)["count"][0]:
                least[field.name] = least_seen(data.training_counts[field.name])
        self._rows: list[tuple[StackedTables, str, Tensor]] = [
            (part, name, ids)
            for part in model.modules()
            if isinstance(part, StackedTables)
            for name, ids in least.items()
            if part.sizes.get(name) == len(data.training_counts[name]) and len(ids)
        ]

    @torch.no_grad()
    def fill(self) -> None:
        """Give each the mean of the rows of the least seen categories; W2's where it is two-layer,
        so that the mean is that of the product."""
        for table, name, ids in self._rows:
            rows = table.rows_of(name)
            if name in table.sharded:
                self._fill_sharded(table, rows, ids)
            else:
                rows[0] = _mean(rows, ids.to(rows.device)).to(rows.dtype)

    def _fill_sharded(self, table: StackedTables, rows: Tensor, ids: Tensor) -> None:
        """With what every process has of them; row 0 is that of the first."""
        shards = table.shards
        assert shards is not None
        own = ids[ids % shards.size == shards.rank] // shards.size
        total = self._processes.sum_of(_sum(rows, own))
        if self._processes.lead:
            rows[0] = (total / len(ids)).to(rows.dtype)


def _mean(rows: Tensor, ids: Tensor) -> Tensor:
    """Of some rows, in float32, a block of them at a time."""
    if len(ids) <= block_rows(rows.shape[1]):
        return rows[ids].float().mean(dim=0)
    return _sum(rows, ids) / len(ids)


def _sum(rows: Tensor, ids: Tensor) -> Tensor:
    """The same of their sum."""
    blocks = ids.split(block_rows(rows.shape[1]))
    nothing = torch.zeros(rows.shape[1], device=rows.device)
    return sum((rows[block].float().sum(dim=0) for block in blocks), nothing)


def least_seen(counts: npt.NDArray[np.int64]) -> Tensor:
    """The tenth of the categories that were seen least in training, at least ten, ties included.

    Args:
        counts: (n,) training rows of each id; categories without any are none of them.
    """
    seen = np.flatnonzero(counts)
    if not len(seen):
        return torch.from_numpy(seen)
    number = min(len(seen), max(_AT_LEAST, round(_SHARE * len(seen))))
    limit = np.partition(counts[seen], number - 1)[number - 1]
    return torch.from_numpy(seen[counts[seen] <= limit])
