"""Tables that the engine looks up in a model under ``torch.compile``: one operator of its graph.

Kernels cannot be traced, nor can a gradient that is held as two factors. So the operator's backward
pass leaves a table's gradient where the engine's own would, and gives the graph the projection's
and a zero, as that of a parameter which is nobody's: without a use for it, a graph would leave
the operator out.
"""

from __future__ import annotations

import itertools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mlet.engine import (
    Asked,
    FactoredGradient,
    Lookups,
    RowGradient,
    TableStack,
    projection_gradient,
)
from mlet.engine.rounding import compute_dtype


class _Tables(Protocol):
    """Tables that a fused optimizer trains."""

    stack: TableStack
    row_gradients: list[RowGradient] | None
    _forward_pre_hooks: dict[int, Any]

    @property
    def stacked(self) -> nn.Parameter: ...


#: Tables by their number, which stands for them in a graph.
_numbered: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
#: What forward passes found for their backward passes, as long as those may come.
_kept: dict[int, Asked] = {}
_keys = itertools.count(1)

#: The parameter.
_NOBODYS = torch.zeros(1, requires_grad=True)


class HookOfRuns(ABC):
    """A module's hook that is no part of a compiled graph, but called when its lookups run."""

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Before a forward pass that is not compiled."""
        if not torch.compiler.is_compiling():
            self.run(module)

    @abstractmethod
    def run(self, module: Any) -> None:
        """Before any forward pass."""


def number(tables: nn.Module) -> int:
    """A number of their own, for as long as they are there."""
    own = next(_numbers)
    _numbered[own] = tables
    return own


def look_up_in_graph(number: int, projection: Tensor | None, lookups: Lookups) -> Tensor:
    """As `mlet.engine.look_up`, in the tables of a `number`, in the dtype of computation.

    Their rows are not named: to the graph a parameter's gradient is one tensor, and theirs is not.
    """
    vectors, _ = _look_up(
        projection,
        _NOBODYS,
        lookups.ids,
        list(lookups.starts),
        lookups.batch,
        [offsets for offsets in lookups.offsets if offsets is not None],
        [offsets is not None for offsets in lookups.offsets],
        list(lookups.mean),
        lookups.each,
        number,
    )
    looked_up: Tensor = vectors
    return looked_up


@torch.library.custom_op("mlet::look_up", mutates_args=())
def _look_up(
    projection: Tensor | None,
    nobodys: Tensor,
    ids: Tensor,
    starts: Sequence[int],
    batch: int,
    offsets: Sequence[Tensor],
    pooled: Sequence[bool],
    mean: Sequence[bool],
    each: bool,
    number: int,
) -> tuple[Tensor, Tensor]:
    """Vectors, and a key to what the backward pass needs: that is forgotten when the key is."""
    tables: _Tables = _numbered[number]
    table = tables.stacked.detach()
    with torch.enable_grad():
        for hook in tables._forward_pre_hooks.values():
            if isinstance(hook, HookOfRuns):
                hook.run(tables)
    # A copy of the ids, as the graph may put something else in their memory.
    given = iter(offsets)
    bags = tuple(next(given) if pools else None for pools in pooled)
    lookups = Lookups(ids.clone(), tuple(starts), batch, bags, tuple(mean), each)
    asked = Asked.find(table, projection, lookups, tables.stack)
    key = torch.tensor(next(_keys))
    _kept[int(key)] = asked.to_keep()
    weakref.finalize(key, _kept.pop, int(key), None)
    return asked.vectors(table, projection), key


@_look_up.register_fake
def _(
    projection: Tensor | None,
    nobodys: Tensor,
    ids: Tensor,
    starts: Sequence[int],
    batch: int,
    offsets: Sequence[Tensor],
    pooled: Sequence[bool],
    mean: Sequence[bool],
    each: bool,
    number: int,
) -> tuple[Tensor, Tensor]:
    table = _numbered[number].stacked
    dim = table.shape[1] if projection is None else projection.shape[2]
    shape = (len(ids), dim) if each else (batch, len(mean), dim)
    vectors = torch.empty(shape, dtype=compute_dtype(table), device=table.device)
    return vectors, torch.empty((), dtype=torch.int64)


@torch.library.custom_op("mlet::leave_gradient", mutates_args=())
def _leave_gradient(
    grad: Tensor, projection: Tensor | None, key: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Leave a table's gradient to its optimizer; return a zero, and the projection's."""
    tables: _Tables = _numbered[number]
    table = tables.stacked.detach()
    gradient = _kept[int(key)].gradient(grad.contiguous())
    if tables.row_gradients is not None:
        tables.row_gradients.append(gradient)
        return torch.zeros(1), grad.new_empty(0)
    factored = FactoredGradient(table, projection, gradient, tables.stack)
    _accumulate(tables.stacked, factored)
    wide = projection_gradient(table, projection, gradient)
    return torch.zeros(1), grad.new_empty(0) if wide is None else wide


def _accumulate(parameter: Any, grad: Tensor) -> None:
    """As autograd does at the end of a backward pass; the parameter's hooks are called."""
    for hook in (parameter._backward_hooks or {}).values():
        changed = hook(grad)
        grad = grad if changed is None else changed
    parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    for hook in (parameter._post_accumulate_grad_hooks or {}).values():
        hook(parameter)


@_leave_gradient.register_fake
def _(grad: Tensor, projection: Tensor | None, key: Tensor, number: int) -> tuple[Tensor, Tensor]:
    tables: _Tables = _numbered[number]
    if projection is None or tables.row_gradients is not None:
        return torch.empty(1), grad.new_empty(0)
    return torch.empty(1), torch.empty_like(projection)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projection, _, _, _, _, offsets, *_, ctx.number = inputs
    ctx.save_for_backward(projection, output[1])
    ctx.bags = len(offsets)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    projection, key = ctx.saved_tensors
    zero, wide = _leave_gradient(grad, projection, key, ctx.number)
    alone = projection is None or _numbered[ctx.number].row_gradients is not None
    return None if alone else wide, zero, *(None,) * 3, [None] * ctx.bags, *(None,) * 4


_look_up.register_autograd(_backward, setup_context=_setup_context)
