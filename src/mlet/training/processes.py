"""One training by several processes: each has a part of every batch, and all of the model."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from mlet.data import Batch
from mlet.engine import RowGradient
from mlet.engine.rounding import compute_dtype
from mlet.errors import RunError
from mlet.nn.stacked_tables import StackedTables
from mlet.optim.processes import rows_of_all

#: Until a process that says nothing is given up. One that ends is noticed at once.
_PATIENCE = timedelta(minutes=10)


class ProcessLostError(RunError):
    """Another process of a training is gone: what went wrong, if anything did, is for it to say."""


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that ``torchrun`` started, where it started more than one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield
        return
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield
    except ProcessLostError:
        # torchrun ends those that are left: this one is about to end.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        distributed.destroy_process_group()


class Processes:
    """Those that train one run together; most often one alone, for which all this does nothing.

    Every process makes the same steps, with gradients that are summed over the parts of a batch, of
    tables of the rows that were looked up; and has all parameters, but for rows of large tables
    (`mlet.training.sharded_rows`). What is decided is decided alike, and the first process alone
    writes.

    Attributes:
        rank: the place of this process, 0 of the first.
        size: how many there are.
    """

    def __init__(self) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if several else 0
        self.size = distributed.get_world_size() if several else 1

    @property
    def lead(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """Of so many rows those of this process: a run of them, as long as the others' or one more
        or less."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def own(self, batch: Batch) -> Batch:
        """This process' part of a batch."""
        return batch if self.size == 1 else batch.rows(self.part(len(batch.dense)))

    def sum(self, value: float) -> float:
        """The sum of everybody's."""
        if self.size == 1:
            return value
        return self.sum_of(torch.tensor(value, dtype=torch.float64)).item()

    def sum_of(self, values: Tensor) -> Tensor:
        """The sum of everybody's, of one shape; in the place of this process'."""
        if self.size > 1:
            with named_failures():
                distributed.all_reduce(values)
        return values

    def any(self, value: bool) -> bool:
        """Whether it is so for anybody."""
        return self.sum(float(value)) > 0

    def wait(self) -> None:
        """Until all are here."""
        self.sum(0.0)

    @contextmanager
    def lead_first(self) -> Iterator[None]:
        """What the first process does before the others, as it leaves files that they find."""
        if not self.lead:
            self.wait()
        yield
        if self.lead:
            self.wait()

    def exchange(self, parts: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """Give part r to process r; what the others gave to this one, in their order.

        Args:
            parts: of one dtype, of any shapes.
            lengths: how many numbers each of the others gives.

        Returns:
            One-dimensional tensors.
        """
        sent = torch.cat([part.reshape(-1) for part in parts])
        got = sent.new_empty(sum(lengths))
        with named_failures():
            distributed.all_to_all_single(
                got, sent, list(lengths), [part.numel() for part in parts]
            )
        return list(got.split(list(lengths)))

    @torch.no_grad()
    def add_gradients(self, model: nn.Module) -> None:
        """Let every gradient be the sum of all processes'."""
        if self.size == 1:
            return
        tables = [part for part in model.modules() if isinstance(part, StackedTables)]
        self.add_shared(model, tables)
        with named_failures():
            _add_rows(tables, self.size)

    @torch.no_grad()
    def add_shared(self, model: nn.Module, tables: Sequence[StackedTables]) -> None:
        """Let the gradients of all but the rows of tables be the sum of all processes'."""
        stacked = {id(table.stacked) for table in tables}
        shared = [p for p in model.parameters() if p.requires_grad and id(p) not in stacked]
        with named_failures():
            _add_shared(shared)


def _add_shared(parameters: Sequence[nn.Parameter]) -> None:
    """Of parameters that all rows use, in one exchange; those that have no gradient anywhere keep
    none, as optimizers leave them alone."""
    if not parameters:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters])
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([has, *(grad.reshape(-1).float().cpu() for grad in own)])
    distributed.all_reduce(flat)
    sums = flat[len(parameters) :].split([p.numel() for p in parameters])
    for parameter, somewhere, total in zip(parameters, flat.tolist(), sums, strict=False):
        if somewhere:
            parameter.grad = total.view_as(parameter).to(parameter)


def _add_rows(tables: Sequence[StackedTables], size: int) -> None:
    own = []
    for table in tables:
        gradients = table.row_gradients
        assert gradients is not None, "a fused optimizer trains it"
        if gradients:
            own.append(RowGradient.merge(gradients, table.stack).compact().sorted())
        else:
            wide = table.stacked if table.inner_dim is None else table.projection
            sums = wide.new_empty(0, wide.shape[-1], dtype=compute_dtype(table.stacked))
            own.append(RowGradient(torch.empty(0, dtype=torch.int64, device=wide.device), (), sums))
    counts = torch.zeros(size, len(tables), dtype=torch.int64)
    counts[distributed.get_rank()] = torch.tensor([len(gradient.rows) for gradient in own])
    distributed.all_reduce(counts)
    of_all = rows_of_all([g.rows for g in own], [g.sums for g in own], counts.tolist())
    for table, parts in zip(tables, of_all, strict=True):
        some = [RowGradient(r, table.stack.starts_in(r), sums) for r, sums in parts if len(r)]
        assert table.row_gradients is not None
        # Its optimizer knows it by this very list.
        table.row_gradients[:] = [RowGradient.merge(some, table.stack)] if some else []


@contextmanager
def named_failures() -> Iterator[None]:
    """Say of what is exchanged within that another process is gone, where it is.

    Raises:
        ProcessLostError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        if re.search("[Cc]onnection|peer|[Tt]imed out|[Tt]imeout", str(error)) is None:
            raise
        raise ProcessLostError(
            "another process of this training has ended, or does not answer; the run's last "
            "checkpoint is whole: go on with mlet train --resume RUN"
        ) from None
