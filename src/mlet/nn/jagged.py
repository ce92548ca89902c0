"""Features whose values come in bags, looked up in tables that have several features each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from mlet.engine import Lookups, engine_serves
from mlet.nn.plain_lookups import pool
from mlet.nn.shared_tables import look_up_gathered
from mlet.nn.stacked_tables import StackedTables


class JaggedBatch(NamedTuple):
    """The bags of F features for a batch of B rows, feature after feature, row after row.

    Attributes:
        values: (V,) the categories of all bags end to end; int32 or int64.
        lengths: (F, B) how many each bag has.
        starts: F + 1 positions in ``values``: where each feature's begin.
        weights: (V,) what each value's vector is multiplied by; None for none.
    """

    values: Tensor
    lengths: Tensor
    starts: Sequence[int]
    weights: Tensor | None = None

    def of(self, features: Sequence[int]) -> JaggedBatch:
        """That of some of the features, in this order."""
        if list(features) == list(range(len(self.starts) - 1)):
            return self
        parts = [slice(self.starts[place], self.starts[place + 1]) for place in features]
        counts = [self.starts[place + 1] - self.starts[place] for place in features]
        weights = self.weights
        return JaggedBatch(
            torch.cat([self.values[part] for part in parts]),
            self.lengths[list(features)],
            list(accumulate(counts, initial=0)),
            None if weights is None else torch.cat([weights[part] for part in parts]),
        )

    def ends(self, tables: int) -> Tensor:
        """(T, m · B + 1) int64: where each bag begins, and the last one ends, among the values of
        its table, each of which has m of the features."""
        lengths = self.lengths.reshape(tables, -1).long()
        return torch.cat([lengths.new_zeros(tables, 1), lengths.cumsum(1)], dim=1)


class FeaturesOfTables:
    """What is looked up in the tables of one stack.

    Args:
        tables: a stack of T.
        features: of each table, in their order, the places of its features in a batch.
        mean: of each table, whether its bags are averaged rather than summed.
    """

    def __init__(
        self, tables: StackedTables, features: Sequence[Sequence[int]], mean: Sequence[bool]
    ) -> None:
        self.tables, self.features, self.mean = tables, features, mean

    def pooled(self, batch: JaggedBatch) -> Tensor:
        """Pooled vectors (B, F, d) of the features, table after table.

        Without weights every table must have as many features as any other: to the engine they are
        one feature of a longer batch. Weighted bags are summed.

        Raises:
            IndexError: an id outside its table.
        """
        mine = batch.of(list(chain(*self.features)))
        features, rows = mine.lengths.shape
        if mine.weights is not None:
            weighted = self._each(mine) * mine.weights.unsqueeze(1)
            sums = pool(weighted, mine.ends(1)[0], mean=False)
            return sums.view(features, rows, sums.shape[1]).transpose(0, 1)
        tables, traced = len(self.features), not engine_serves(mine.values)
        vectors = self._by_torch(mine) if traced else self.tables(self._lookups(mine))
        # (m · B, T, d)
        each = vectors.view(features // tables, rows, tables, vectors.shape[2])
        return each.permute(1, 2, 0, 3).reshape(rows, features, vectors.shape[2])

    def each(self, batch: JaggedBatch) -> Tensor:
        """The vector of every value (V × d), feature after feature, table after table.

        Raises:
            IndexError: an id outside its table.
        """
        return self._each(batch.of(list(chain(*self.features))))

    def _table_starts(self, mine: JaggedBatch) -> list[int]:
        """Where each table's values begin."""
        counts = accumulate((len(features) for features in self.features), initial=0)
        return [mine.starts[count] for count in counts]

    def _lookups(self, mine: JaggedBatch) -> Lookups:
        tables = len(self.features)
        # A bag of one is that one: nothing to pool.
        single = (mine.lengths.reshape(tables, -1) == 1).all(dim=1).tolist()
        ends = [None] * tables if all(single) else mine.ends(tables).unbind(0)
        return Lookups(
            ids=mine.values.long(),
            starts=tuple(self._table_starts(mine)),
            batch=mine.lengths.numel() // tables,
            offsets=tuple(None if one else end for one, end in zip(single, ends, strict=True)),
            mean=tuple(self.mean),
        )

    def _by_torch(self, mine: JaggedBatch) -> Tensor:
        """Pooled (m · B, T, d) where operations are traced."""
        tables = len(self.features)
        starts, ends = self._table_starts(mine), mine.ends(tables).unbind(0)
        bags = [(mine.values[starts[t] : starts[t + 1]], ends[t]) for t in range(tables)]
        nothing = mine.values.new_empty(mine.lengths.numel() // tables, 0)
        if self.tables.is_plain(traced=True):
            return self.tables.plain(nothing, bags, self.mean, traced=True)
        return look_up_gathered(self.tables, nothing, bags, self.mean)

    def _each(self, mine: JaggedBatch) -> Tensor:
        starts = self._table_starts(mine)
        if engine_serves(mine.values) or not self.tables.is_plain(traced=True):
            vectors: Tensor = self.tables(Lookups.of_each(mine.values, starts))
            return vectors
        parts = []
        for table in range(len(self.features)):
            ids = mine.values[starts[table] : starts[table + 1]].unsqueeze(1)
            checked = self.tables.checked(ids, table, traced=True)
            parts.append(self.tables.plain_vectors(checked, table).squeeze(1))
        return torch.cat(parts)
