"""The state of a training whose tables are sharded, as one process has it, and back.

A checkpoint is the same file whoever wrote it, so that any number of processes goes on from it. The
first process puts whole tables together in files that memory does not have to have room for, and
every process takes its own rows of what it finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from mlet.models import CTRModel
from mlet.nn import FieldEmbedding
from mlet.nn.factored import INNER, WEIGHT, block_rows
from mlet.nn.stacked_tables import StackedTables
from mlet.table_files import TableFiles, new_table
from mlet.training.optimizers import Optimizers
from mlet.training.processes import Processes, named_failures


class WholeState:
    """Puts together what several processes have, and takes it apart.

    Args:
        model, optimizers: of this process.
        processes: that train them.
        folder: where whole tables lie, in files, while they are written.
    """

    def __init__(
        self, model: CTRModel, optimizers: Optimizers, processes: Processes, folder: Path
    ) -> None:
        self._model, self._optimizers = model, optimizers
        self._processes, self._folder = processes, folder

    @torch.no_grad()
    def model(self) -> dict[str, Any]:
        """The model's ``state_dict``; in other processes than the first there is less in it.

        Raises:
            WriteError: there is no room for a file.
        """
        state: dict[str, Any] = self._model.state_dict()
        for entry in _entries(self._model):
            state[entry.key] = self._whole(entry.table, state[entry.key], [entry.field])
        return state

    @torch.no_grad()
    def optimizers(self) -> dict[str, Any]:
        """The same of the optimizers."""
        state = self._optimizers.state_dict()
        for table, kept in _kept(self._model, self._optimizers, state):
            for name, own in kept.items():
                kept[name] = self._whole(table, own, list(table.sizes))
        return state

    def own(self, state: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint's state with this process' rows in the place of whole tables.

        Raises:
            KeyError, IndexError, AttributeError: it is not of this model.
        """
        model = dict(state["model"])
        for entry in _entries(self._model):
            model[entry.key] = entry.table.own_of(entry.field, model[entry.key])
        optimizers = {name: dict(one) for name, one in state["optimizers"].items()}
        for table, kept in _kept(self._model, self._optimizers, optimizers):
            for name, whole in kept.items():
                starts = table.stack.first_rows
                if len(whole) != starts[-1]:
                    raise IndexError(f"{len(whole)} rows of state for {starts[-1]}")
                mine = new_table((len(table.stacked), whole.shape[1]), whole.dtype, table.files)
                at = 0
                for field, low in zip(table.sizes, starts, strict=False):
                    rows = table.own_of(field, whole[low : low + table.sizes[field]])
                    mine[at : at + len(rows)] = rows
                    at += len(rows)
                kept[name] = mine
        return {**state, "model": model, "optimizers": optimizers}

    def _whole(self, table: StackedTables, own: Tensor, fields: list[str]) -> Tensor:
        """Of some of its tables, one above the other, all rows; in other processes than the first
        what they have."""
        lead = self._processes.lead
        sizes = [table.sizes[field] for field in fields]
        whole = own
        if lead:
            whole = TableFiles(self._folder).zeros((sum(sizes), own.shape[1]), own.dtype)
        low = at = 0
        for field, size in zip(fields, sizes, strict=True):
            here = len(table.rows_of(field))
            mine, place = own[at : at + here], whole[low : low + size]
            if field in table.sharded:
                self._gather(table, mine, place)
            elif lead:
                place.copy_(mine)
            low, at = low + size, at + here
        return whole

    def _gather(self, table: StackedTables, own: Tensor, whole: Tensor) -> None:
        """Fill a whole table of the first process, a block at a time."""
        assert table.shards is not None
        count = block_rows(own.shape[1])
        if not self._processes.lead:
            with named_failures():
                for block in own.split(count):
                    distributed.send(block.contiguous(), 0)
            return
        size = self._processes.size
        whole[::size] = own
        for rank in range(1, size):
            theirs = whole[rank::size]
            for low in range(0, len(theirs), count):
                block = own.new_empty(min(count, len(theirs) - low), own.shape[1])
                with named_failures():
                    distributed.recv(block, rank)
                theirs[low : low + count] = block


class _Entry(NamedTuple):
    """What a sharded table is in a model's ``state_dict``."""

    key: str
    table: StackedTables
    field: str


def _entries(model: CTRModel) -> Iterator[_Entry]:
    for module, layer in model.named_modules():
        if not isinstance(layer, FieldEmbedding):
            continue
        for field in layer.table_names:
            table = layer.tables_of(field)
            if isinstance(table, StackedTables) and field in table.sharded:
                part = WEIGHT if table.inner_dim is None else INNER
                yield _Entry(f"{module}.{layer.entry_of(field)}.{part}", table, field)


def _kept(
    model: CTRModel, optimizers: Optimizers, state: dict[str, Any]
) -> Iterator[tuple[StackedTables, dict[str, Tensor]]]:
    """Sharded tables and what is kept of their rows, in a dictionary that may be changed."""
    tables = {id(p.stacked): p for p in model.modules() if isinstance(p, StackedTables)}
    entries = state["embeddings"]["state"] = dict(state["embeddings"]["state"])
    for place, parameter in enumerate(optimizers.of_tables()):
        table = tables.get(id(parameter))
        if table is not None and table.sharded and place in entries:
            entries[place] = dict(entries[place])
            yield table, entries[place]
