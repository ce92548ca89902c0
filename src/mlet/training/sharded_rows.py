"""Rows of sharded tables, looked up and trained where they are.

Before a batch goes through the model, every process sends the distinct ids of its part of it to the
processes that have their rows. Those look them up and project them, so that vectors come back which
are d wide, whatever k is. After the backward pass the sums of each distinct row's gradients, d wide
too, go the way that the ids went, and what several processes send of a row is added up where the
row is. Rows of tables that are whole everywhere are nobody's: their sums go to all, along with
these. All tables of a model are in one exchange each way.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from mlet.data import Batch
from mlet.engine import (
    Distinct,
    FetchedRows,
    Lookups,
    RowGradient,
    choose_backend,
    each_projected,
    projection_gradient,
)
from mlet.engine.rounding import compute_dtype
from mlet.models import CTRModel
from mlet.nn import FieldEmbedding
from mlet.nn.stacked_tables import StackedTables
from mlet.training.processes import Processes


class ShardedRows:
    """What the processes of a training exchange of their tables, if some are sharded.

    Args:
        model: the tables' own; all processes have the same.
        processes: that train it.
    """

    def __init__(self, model: CTRModel, processes: Processes) -> None:
        self._layers = [part for part in model.modules() if isinstance(part, FieldEmbedding)]
        self.tables = [part for part in model.modules() if isinstance(part, StackedTables)]
        self._processes = processes
        self._shares = [_Share(table, processes) for table in self.tables]
        self._widths = torch.tensor([table.dim for table in self.tables])

    @torch.no_grad()
    def fetch(self, batch: Batch | None) -> None:
        """Give the model's tables the vectors of a batch, of which None is one without rows.

        All processes call it together, for each batch once.
        """
        asked = [None for _ in self.tables] if batch is None else self._asked(batch)
        for share, lookups in zip(self._shares, asked, strict=True):
            share.ask(lookups)
        ranks = range(self._processes.size)
        counts = torch.tensor([[share.counts(rank) for share in self._shares] for rank in ranks])
        heads = self._processes.exchange(list(counts), [counts[0].numel() for _ in ranks])
        self._theirs = torch.stack(heads).view(counts.shape)  # (N × T × 2)
        self._exchange(_Share.rows_for, self._theirs.flatten(1), _Share.take_rows)
        self._exchange(_Share.vectors_for, counts[:, :, 0] * self._widths, _Share.take_vectors)

    def _asked(self, batch: Batch) -> list[Lookups]:
        """What a batch asks of each of the tables."""
        noted: list[list[Lookups]] = [[] for _ in self.tables]
        try:
            for table, lookups in zip(self.tables, noted, strict=True):
                table.asked = lookups
            for layer in self._layers:
                layer(batch.ids, batch.bags)
        finally:
            for table in self.tables:
                table.asked = None
        return [lookups[0] for lookups in noted]

    @torch.no_grad()
    def send_gradients(self) -> None:
        """Let every row's gradient be the sum of all processes', where the row is, and projections
        of sharded tables have that of the rows that are here for their ``.grad``."""
        sizes = self._theirs.sum(dim=2) * self._widths
        self._exchange(_Share.sums_for, sizes, _Share.take_sums)

    def _exchange(
        self,
        give: Callable[[_Share, int], Tensor],
        sizes: Tensor,
        take: Callable[[_Share, list[tuple[Tensor, ...]]], None],
    ) -> None:
        """One exchange of what all tables have to give.

        Args:
            give: what a table has for a process.
            sizes: of what comes from each process (N × …), as many pieces of every table.
            take: a table takes its pieces of every process.
        """
        messages = [
            torch.cat([give(share, rank).reshape(-1) for share in self._shares])
            for rank in range(self._processes.size)
        ]
        lengths = sizes.tolist()
        found = self._processes.exchange(messages, [sum(pieces) for pieces in lengths])
        pieces = [message.split(own) for message, own in zip(found, lengths, strict=True)]
        count = sizes.shape[1] // len(self._shares)
        for place, share in enumerate(self._shares):
            take(share, [each[place * count : (place + 1) * count] for each in pieces])


class _Share:
    """One stack of tables in the exchange of one batch."""

    def __init__(self, table: StackedTables, processes: Processes) -> None:
        self._table, self._rank, self._size = table, processes.rank, processes.size
        self._dtype = compute_dtype(table.stacked)
        stacks = [table.stack_here(rank) for rank in range(self._size)]
        self._here = stacks[self._rank]
        #: Where each table begins in each process' matrix: (N × T).
        self._first = torch.tensor([stack.first_rows[:-1] for stack in stacks])
        self._is_sharded = torch.tensor([name in table.sharded for name in table.sizes])

    def ask(self, lookups: Lookups | None) -> None:
        """Find the distinct rows of a batch, and whose they are."""
        table = self._table
        self._lookups = lookups
        projection = None if table.inner_dim is None else table.projection
        if lookups is None:
            nothing = torch.empty(0, dtype=torch.int64)
            self._distinct = Distinct(nothing, (0,) * (len(table.stack) + 1), nothing)
        else:
            backend = choose_backend(table.stacked)
            self._distinct = backend.find_distinct(table.stacked, projection, lookups, table.stack)
        distinct = self._distinct
        lengths = torch.tensor([high - low for low, high in pairwise(distinct.starts)])
        whose = torch.arange(len(lengths)).repeat_interleave(lengths)
        ids = distinct.rows - torch.tensor(table.stack.first_rows)[whose]
        sharded = self._is_sharded[whose]
        owners = torch.where(sharded, ids % self._size, -1)
        if distinct.touched is not None:
            owners = torch.where(distinct.touched, owners, self._size)  # nobody is asked
        self._whose = whose
        self._within = torch.where(sharded, ids // self._size, ids)
        counts = torch.bincount(owners + 1, minlength=self._size + 2).tolist()
        of_all, *of_each, _ = torch.argsort(owners, stable=True).split(counts)
        self._of_all, self._of_each = of_all, of_each

    def counts(self, rank: int) -> list[int]:
        """How many rows a process is asked for, and told of."""
        return [len(self._of_each[rank]), len(self._of_all)]

    def _places(self, rank: int) -> Tensor:
        return torch.cat([self._of_each[rank], self._of_all])

    def rows_for(self, rank: int) -> Tensor:
        """Those, by their numbers in its matrix."""
        places = self._places(rank)
        return self._first[rank][self._whose[places]] + self._within[places]

    def take_rows(self, given: list[tuple[Tensor, ...]]) -> None:
        """Look up what the processes ask for, and what this one has itself."""
        table = self._table
        self._given = torch.cat([rows for both in given for rows in both])
        asked = [*(rows for rows, _ in given), given[self._rank][1]]
        rows, slots = torch.unique(torch.cat(asked), return_inverse=True)
        found = Distinct(rows, self._here.starts_in(rows), slots)
        if table.inner_dim is None:
            vectors = table.stacked.index_select(0, rows).to(self._dtype)[slots]
        else:
            vectors = each_projected(table.stacked, table.projection, found)
        *self._answers, self._own = vectors.split([len(rows) for rows in asked])

    def vectors_for(self, rank: int) -> Tensor:
        """What a process has asked for, (… × d)."""
        answer: Tensor = self._answers[rank]
        return answer

    def take_vectors(self, given: list[tuple[Tensor, ...]]) -> None:
        """Put together what this process has asked for."""
        distinct, table = self._distinct, self._table
        vectors = torch.zeros(len(distinct.rows), table.dim, dtype=self._dtype)
        vectors[self._of_all] = self._own
        for places, (found,) in zip(self._of_each, given, strict=True):
            vectors[places] = found.view(-1, table.dim).to(self._dtype)
        table.fetched = None
        if self._lookups is not None:
            table.fetched = FetchedRows(self._lookups, distinct, vectors)
        self._answers, self._own = [], vectors[:0]

    def sums_for(self, rank: int) -> Tensor:
        """The gradients of the rows that a process was asked for, and told of."""
        gradients = self._table.row_gradients
        if not gradients:  # of a batch without rows
            return torch.zeros(len(self._places(rank)), self._table.dim, dtype=self._dtype)
        sums = gradients[0].sums
        for gradient in gradients[1:]:  # of a layer that was called again
            sums = sums + gradient.sums
        return sums.index_select(0, self._places(rank))

    def take_sums(self, given: list[tuple[Tensor, ...]]) -> None:
        """Add up, in the order of the processes."""
        table = self._table
        assert table.row_gradients is not None, "a fused optimizer trains it"
        rows, slots = torch.unique(self._given, return_inverse=True)
        sums = torch.zeros(len(rows), table.dim, dtype=self._dtype)
        values = torch.cat([part for (part,) in given]).view(-1, table.dim)
        sums.index_add_(0, slots, values.to(self._dtype))
        gradient = RowGradient(rows, self._here.starts_in(rows), sums)
        # Its optimizer knows it by this very list.
        table.row_gradients[:] = [gradient] if len(rows) else []
        if table.sharded and table.inner_dim is not None and table.projection.requires_grad:
            grad = projection_gradient(table.stacked, table.projection, gradient)
            assert grad is not None
            if self._rank > 0:  # of tables that are whole the first process' is that of all
                grad[~self._is_sharded] = 0
            table.projection.grad = grad
