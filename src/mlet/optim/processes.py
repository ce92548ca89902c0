"""Gradients of rows, averaged over the processes of a `DistributedDataParallel`."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from mlet.engine import FactoredGradient, RowGradient, rows_of
from mlet.engine.rounding import compute_dtype
from mlet.nn.in_the_graph import HookOfRuns
from mlet.nn.sparse_gradients import is_left_out
from mlet.optim.fused_optimizer import Tables, projections_of

#: What a table of a process has: no gradient, one as two factors, or rows as wide as the table.
_NOTHING, _FACTORS, _WIDE = range(3)


class Processes:
    """Keeps tables the same on all processes, as `DistributedDataParallel` keeps other parameters.

    It is told to ignore the tables. At the first forward pass under it, the tables of its first
    process are handed to the others; at the end of every backward pass that it would average
    gradients in (not under ``no_sync``), each process sends the rows that it looked up and their
    sums, d wide, and takes the mean of all. Every process adds up in the same order. Of a table
    that no fused optimizer trains these are the rows of its sparse gradient, as wide as it.

    Args:
        model: what will be wrapped.
        tables: whose gradients are held as two factors, or sparse.

    Raises:
        ValueError: the model is wrapped already, and its tables were not left out.
    """

    def __init__(self, model: nn.Module, tables: Sequence[Tables]) -> None:
        # Of tied tables one stands for all.
        once = {id(table.stacked): table for table in tables if not _is_watched(table)}
        self._tables = list(once.values())
        self._wrapper: weakref.ref[DistributedDataParallel] | None = None
        self._group: Any = None
        self._averages = self._queued = False
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        stacked = {id(table.stacked) for table in self._tables}
        for part in model.modules():
            if isinstance(part, DistributedDataParallel) and not _ignores(part, stacked):
                raise ValueError(
                    "make the optimizer with mlet.optim.fused before the model is wrapped in "
                    "DistributedDataParallel, which would exchange whole tables"
                )
        ignored = list(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
        ignored += [name for name, p in model.named_parameters() if id(p) in stacked]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        for table in self._tables:
            table.register_forward_pre_hook(_BeforeLookup(self))
            table.stacked.register_post_accumulate_grad_hook(_AfterGradient(self))

    def before_lookup(self) -> None:
        """Notice who wraps the model; once, let all tables be those of the first process."""
        wrapper = DistributedDataParallel._active_ddp_module
        if not torch.is_grad_enabled():
            return
        self._averages = wrapper is not None and bool(wrapper.require_backward_grad_sync)
        if wrapper is None or (self._wrapper is not None and self._wrapper() is wrapper):
            return
        if not _ignores(wrapper, {id(table.stacked) for table in self._tables}):
            if not any(table.factored_gradient for table in self._tables):
                self._averages = False  # the wrapper does, of gradients that are dense
                return
            raise RuntimeError(
                "DistributedDataParallel exchanges whole tables here: wrap the very module that "
                "mlet.optim.fused was given, after it was given"
            )
        self._wrapper, self._group = weakref.ref(wrapper), wrapper.process_group
        first = distributed.get_global_rank(self._group, 0)
        for table in self._tables:
            distributed.broadcast(table.stacked.detach(), first, group=self._group)

    def after_gradient(self) -> None:
        """Average at the end of this backward pass."""
        if self._averages and not self._queued:
            self._queued = True
            Variable._execution_engine.queue_callback(self._average)

    @torch.no_grad()
    def _average(self) -> None:
        self._queued = False
        own = [_Share(table) for table in self._tables]
        device = own[0].rows.device
        world = distributed.get_world_size(self._group)
        kinds = torch.tensor([[share.kind, len(share.rows)] for share in own], device=device)
        heads = torch.stack(_gather(kinds, [len(own)] * world, self._group))
        for place, share in enumerate(own):
            if bool((heads[:, place, 0] == _WIDE).any()):
                share.widen()
        counts = heads[:, :, 1].tolist()
        parts = rows_of_all([s.rows for s in own], [s.values for s in own], counts, self._group)
        for place, share in enumerate(own):
            if not bool((heads[:, place, 0] == _NOTHING).all()):
                share.take(parts[place], world)


def rows_of_all(
    rows: Sequence[Tensor], values: Sequence[Tensor], counts: list[list[int]], group: Any = None
) -> list[list[tuple[Tensor, Tensor]]]:
    """For each table, the rows and their values that every process has of it, in their order.

    Args:
        rows: of each table, (R,) int64: this process'.
        values: of those, (R × width), as wide on all processes.
        counts: R of each table, by process.
        group: of processes; all by default.
    """
    numbers, flat = torch.cat(list(rows)), torch.cat([of_table.reshape(-1) for of_table in values])
    widths = [of_table.shape[1] for of_table in values]
    lengths = [[c * w for c, w in zip(each, widths, strict=True)] for each in counts]
    # In one exchange, as bytes: numbers of rows, then values.
    ends = [8 * sum(each) for each in counts]
    sizes = [end + flat.itemsize * sum(each) for end, each in zip(ends, lengths, strict=True)]
    all_of = _gather(torch.cat([numbers.view(torch.uint8), flat.view(torch.uint8)]), sizes, group)
    parts = list(zip(all_of, ends, strict=True))
    all_rows = [both[:end].view(torch.int64) for both, end in parts]
    all_values = [both[end:].view(flat.dtype) for both, end in parts]
    return [
        [
            (
                _cut(all_rows[rank], counts[rank], place),
                _cut(all_values[rank], lengths[rank], place).view(-1, width),
            )
            for rank in range(len(counts))
        ]
        for place, width in enumerate(widths)
    ]


def _gather(mine: Tensor, lengths: list[int], group: Any) -> list[Tensor]:
    """Those of all processes, of different lengths."""
    longest = max(lengths)
    padded = mine.new_zeros(longest, *mine.shape[1:])
    padded[: len(mine)] = mine
    all_of = [torch.empty_like(padded) for _ in lengths]
    if longest:
        distributed.all_gather(all_of, padded, group=group)
    return [each[:length] for each, length in zip(all_of, lengths, strict=True)]


class _BeforeLookup(HookOfRuns):
    """A module's hook. Copies of the module have one that does nothing: they are trained by another
    optimizer, or by none."""

    def __init__(self, processes: Processes | None = None) -> None:
        self.processes = processes

    def run(self, module: Any) -> None:
        """Tell the processes.

        Raises:
            RuntimeError: nobody would average this copy's gradients.
        """
        wrapper = DistributedDataParallel._active_ddp_module
        if self.processes is not None:
            self.processes.before_lookup()
        elif (
            wrapper is not None
            and torch.is_grad_enabled()
            and not _is_watched(module)
            and is_left_out(module.stacked, wrapper)
        ):
            raise RuntimeError(
                "DistributedDataParallel leaves out the tables of this model, a copy of one whose "
                "rows are exchanged: make an optimizer of the copy with mlet.optim.fused before it "
                "is wrapped"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> _BeforeLookup:
        return _BeforeLookup()

    def __reduce__(self) -> tuple[Any, ...]:
        return _BeforeLookup, ()


class _AfterGradient:
    """A hook on a table's gradient."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def __call__(self, parameter: Tensor) -> None:
        self._processes.after_gradient()


def is_exchange(hook: object) -> bool:
    """Whether a hook on a table, or on its gradient, is one of `Processes`."""
    return isinstance(hook, (_BeforeLookup, _AfterGradient))


def _is_watched(table: Tables) -> bool:
    return any(
        isinstance(hook, _BeforeLookup) and hook.processes is not None
        for hook in table._forward_pre_hooks.values()
    )


class _Share:
    """One process' gradient of one table."""

    def __init__(self, table: Tables) -> None:
        self.table = table
        grad, parameter = table.stacked.grad, table.stacked
        dtype = compute_dtype(parameter)
        gradient = grad.merged() if isinstance(grad, FactoredGradient) else None
        width = parameter.shape[1] if table.inner_dim is None else table.projection.shape[-1]
        self.kind = _NOTHING
        self.rows = torch.empty(0, dtype=torch.int64, device=parameter.device)
        self.values = torch.empty(0, width, dtype=dtype, device=parameter.device)
        if gradient is not None:
            gradient = gradient.compact()
            self.kind, self.rows, self.values = _FACTORS, gradient.rows, gradient.sums.to(dtype)
        elif grad is not None:
            self.kind = _WIDE
            self.rows, values = rows_of(grad)
            self.values = values.to(dtype)

    def widen(self) -> None:
        """Give up the factors, as another process has none."""
        grad = self.table.stacked.grad
        if self.kind == _FACTORS:
            assert grad is not None
            self.rows, self.values = rows_of(grad)
        elif self.kind == _NOTHING:
            self.values = self.values.new_empty(0, self.table.stacked.shape[1])

    def take(self, parts: list[tuple[Tensor, Tensor]], world: int) -> None:
        """Let the mean of all be the gradient."""
        stack = self.table.stack
        parameter: Tensor = self.table.stacked
        rows, places = torch.unique(torch.cat([rows for rows, _ in parts]), return_inverse=True)
        given = torch.cat([values for _, values in parts])
        means = given.new_zeros(len(rows), given.shape[1]).index_add_(0, places, given) / world
        starts = stack.starts_in(rows)
        projection: Tensor | None = None
        if self.table.inner_dim is not None and means.shape[1] != parameter.shape[1]:
            projection = projections_of(self.table)
        if not self.table.factored_gradient:
            parameter.grad = torch.sparse_coo_tensor(
                rows.unsqueeze(0),
                means.to(parameter.dtype),
                parameter.shape,
                is_coalesced=True,
                check_invariants=False,
            )
            return
        gradient = RowGradient(rows, starts, means)
        parameter.grad = FactoredGradient(parameter, projection, gradient, stack)


def _cut(values: Tensor, lengths: list[int], place: int) -> Tensor:
    """One of several pieces that lie end to end."""
    low, high = list(pairwise(accumulate(lengths, initial=0)))[place]
    return values[low:high]


def _ignores(wrapper: DistributedDataParallel, parameters: set[int]) -> bool:
    """Whether it leaves these, as far as they are in it, to us."""
    return not any(
        id(parameter) in parameters and name not in wrapper.parameters_to_ignore
        for name, parameter in wrapper.module.named_parameters()
    )
