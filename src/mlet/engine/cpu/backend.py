"""The engine on CPUs: Numba kernels, one table at a time, tables shared out over threads."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlet.engine.batch import Distinct, Lookups, RowGradient, TableStack
from mlet.engine.cpu import distinct as distinct_ids
from mlet.engine.cpu import kernels, parallel
from mlet.engine.cpu.threads import run
from mlet.engine.rules import Rule

#: A table is listed whole if its projection takes at most this many multiply-adds for each lookup.
#: Telling a lookup's row apart costs about 20 (``benchmarks/engine_choices.py``), and of a table
#: that is small beside the batch most rows are asked for anyway.
LOOKUP_COST = 60

#: Rows for which another thread is worth its waking.
_MIN_SHARE = 512

_NUMPY_DTYPES = {torch.float32: np.float32, torch.uint16: np.uint16, torch.int64: np.int64}


class CPUBackend:
    """See `mlet.engine.backend.Backend`. Tables in float32, bfloat16 or float16."""

    def find_distinct(
        self, table: Tensor, projection: Tensor | None, lookups: Lookups, stack: TableStack
    ) -> Distinct:
        """Distinct rows in order of appearance; small tables whole."""
        row_cost = table.shape[1] * (1 if projection is None else projection.shape[2])
        total = len(lookups.ids)
        work = _lengths(lookups.starts)
        whole = [
            size <= count and size * row_cost <= count * LOOKUP_COST
            for size, count in zip(stack.sizes, work, strict=True)
        ]
        ids = _memory(lookups.ids)
        if len(stack) == 1:
            return self._find_in_one(ids, lookups, stack, whole[0])
        rows = torch.empty(total, dtype=torch.int64, device="cpu")
        touched = torch.empty(total, dtype=torch.bool, device="cpu")
        slots = torch.empty(total, dtype=torch.int32, device="cpu")
        row_starts = np.zeros(len(stack) + 1, np.int64)
        bad = run(
            distinct_ids.find_distinct_of,
            parallel.find_distinct,
            work,
            ids,
            np.array(lookups.starts, dtype=np.int64),
            np.array(stack.sizes, dtype=np.int64),
            np.array(whole),
            np.array(stack.first_rows, dtype=np.int64),
            np.empty(total, np.int64),
            np.empty(total, np.bool_),
            row_starts,
            rows.numpy(),
            touched.numpy(),
            slots.numpy(),
        )
        if bad >= 0:
            raise stack.out_of_range(lookups, bad)
        starts = tuple(row_starts.tolist())
        touched = touched[: starts[-1]]
        return Distinct(rows[: starts[-1]], starts, slots, touched if any(whole) else None)

    def _find_in_one(self, ids: Any, lookups: Lookups, stack: TableStack, whole: bool) -> Distinct:
        """Without what several tables need."""
        length = stack.sizes[0] if whole else len(ids)
        rows = torch.empty(length, dtype=torch.int64, device="cpu")
        touched = torch.empty(length, dtype=torch.bool, device="cpu")
        slots = torch.empty(len(ids), dtype=torch.int32, device="cpu")
        count = distinct_ids.find_distinct_of_one(
            ids, stack.sizes[0], whole, rows.numpy(), slots.numpy(), touched.numpy()
        )
        if count < 0:
            raise stack.out_of_range(lookups, -1 - count)
        rows = rows[:count]
        return Distinct(rows, (0, count), slots, touched[:count] if whole else None)

    def embed(
        self, table: Tensor, projection: Tensor | None, lookups: Lookups, distinct: Distinct
    ) -> Tensor:
        """One pass: rows in blocks, projected, then handed to their lookups."""
        d = table.shape[1] if projection is None else projection.shape[2]
        out = _floats(lookups.batch, len(lookups.offsets), d)
        vectors = np.empty((len(distinct.rows), d), np.float32)
        run(
            kernels.embed_of,
            parallel.embed,
            _work(lookups, distinct),
            distinct.rows.numpy(),
            np.array(distinct.starts, dtype=np.int64),
            *_pooling(lookups, distinct),
            *_table(table),
            _wide(projection),
            vectors,
            out.numpy(),
        )
        return out

    def sum_gradients(self, grad: Tensor, lookups: Lookups, distinct: Distinct) -> Tensor:
        """Each lookup's upstream gradient, added to its row's."""
        sums = _floats(len(distinct.rows), grad.shape[2])
        if lookups.offsets == (None,):
            each = _memory(grad.contiguous())[:, 0]
            kernels.sum_of_each(distinct.slots.numpy(), each, sums.numpy())
            return sums
        run(
            kernels.sum_gradients_of,
            parallel.sum_gradients,
            _lengths(lookups.starts),
            np.array(distinct.starts, dtype=np.int64),
            *_pooling(lookups, distinct),
            _memory(grad.contiguous()),
            sums.numpy(),
        )
        return sums

    def factor_gradients(
        self, table: Tensor, projection: Tensor, gradient: RowGradient
    ) -> tuple[Tensor, Tensor]:
        """Both factors' gradients in one pass over the rows."""
        rows_grad = _floats(len(gradient.rows), table.shape[1])
        projection_grad = _floats(*projection.shape)
        run(
            kernels.factor_gradients_of,
            parallel.factor_gradients,
            _lengths(gradient.starts),
            gradient.rows.numpy(),
            np.array(gradient.starts, dtype=np.int64),
            *_table(table),
            _wide(projection),
            gradient.sums.numpy(),
            rows_grad.numpy(),
            projection_grad.numpy(),
        )
        return rows_grad, projection_grad

    def update(
        self,
        table: Tensor,
        projection: Tensor | None,
        gradient: RowGradient,
        rule: Rule,
        state: tuple[Tensor, ...],
        *,
        projection_grad: bool = True,
    ) -> Tensor | None:
        """Factor gradients and the rule in one pass over the rows."""
        wide = _wide(projection)
        asked = projection is not None and projection_grad
        grad = _floats(*(wide.shape if asked else (0, 0, 0)))
        touched = gradient.touched
        if touched is None:
            touched = torch.ones(len(gradient.rows), dtype=torch.bool, device="cpu")
        states = [tensor.numpy() for tensor in state]
        states += [np.empty((1, 1), np.float32)] * (2 - len(states))
        starts, whose = gradient.starts, np.arange(len(gradient.starts) - 1)
        if not asked:
            starts = _shares(gradient.starts)
            whose = np.searchsorted(gradient.starts, starts[:-1], side="right") - 1
        run(
            kernels.update_of,
            parallel.update,
            _lengths(starts),
            gradient.rows.numpy(),
            np.array(starts, dtype=np.int64),
            whose,
            touched.numpy(),
            *_table(table),
            wide,
            gradient.sums.numpy(),
            grad.numpy(),
            int(rule.name),
            np.float32(rule.lr),
            np.float32(rule.weight_decay),
            np.float32(rule.eps),
            np.float32(rule.betas[0]),
            np.float32(rule.betas[1]),
            *states,
            rule.seed,
        )
        # torch cannot see that its memory was written to; autograd relies on the count.
        torch.autograd.graph.increment_version([table, *state])
        return grad if asked else None


def _floats(*shape: int) -> Tensor:
    """To be filled by a kernel, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _lengths(starts: tuple[int, ...]) -> list[int]:
    """How many lookups or rows each table has."""
    return [stop - start for start, stop in pairwise(starts)]


def _work(lookups: Lookups, distinct: Distinct) -> list[int]:
    """How much each table's lookups are: a row from anywhere in memory costs that of some four that
    are handed out."""
    rows = _lengths(distinct.starts)
    return [many + 4 * own for many, own in zip(_lengths(lookups.starts), rows, strict=True)]


def _memory(tensor: Tensor) -> Any:
    """A tensor of others, seen by NumPy for as long as a kernel runs.

    `Tensor.numpy` would fix the size of its storage for good, and who frees it between uses, as
    fully sharded training does with parameters, could not any more.
    """
    tensor = tensor.detach()
    if not tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.numpy()
    bytes_of = ctypes.c_byte * (tensor.numel() * tensor.element_size())
    buffer: Any = bytes_of.from_address(tensor.data_ptr())
    buffer.owner = tensor  # lives as long as the array
    return np.ndarray(tuple(tensor.shape), _NUMPY_DTYPES[tensor.dtype], buffer)


def _table(table: Tensor) -> tuple[Any, bool]:
    """The matrix as float32 or as raw 16 bits, and whether those are float16."""
    if table.dtype == torch.float32:
        return _memory(table), False
    return _memory(table.detach().view(torch.uint16)), table.dtype == torch.float16


def _shares(starts: tuple[int, ...]) -> tuple[int, ...]:
    """The rows of tables cut where threads take turns, too: no row's step depends on another's."""
    count = starts[-1]
    shares = max(1, min(torch.get_num_threads(), count // _MIN_SHARE))
    return tuple(sorted({*starts, *(count * share // shares for share in range(shares))}))


def _wide(projection: Tensor | None) -> Any:
    """W1 as T × k × d float32; empty for ordinary tables."""
    if projection is None:
        return np.empty((0, 0, 0), np.float32)
    return projection.detach().float().contiguous().numpy()


def _pooling(lookups: Lookups, distinct: Distinct) -> tuple[Any, ...]:
    """slots, starts, each table's number among the bags or −1, the bags' offsets, mean."""
    bags = [offsets for offsets in lookups.offsets if offsets is not None]
    numbers = np.full(len(lookups.offsets), -1, np.int64)
    pooled = [place for place, offsets in enumerate(lookups.offsets) if offsets is not None]
    numbers[pooled] = np.arange(len(pooled))
    offsets = torch.stack(bags).numpy() if bags else np.empty((0, 0), np.int64)
    return (
        distinct.slots.numpy(),
        np.array(lookups.starts, dtype=np.int64),
        numbers,
        offsets,
        np.array(lookups.mean, dtype=np.bool_),
    )
