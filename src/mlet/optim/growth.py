"""Optimizers whose parameters get more rows: what is kept of each, and of those that begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlet.errors import ConversionError
from mlet.nn.growth import GrownParameter
from mlet.optim.fused_optimizer import FusedOptimizer
from mlet.optim.rowwise_adagrad import RowWiseAdagrad
from mlet.optim.whole_model import WholeModel

#: What the state of a row begins as, by the name of the state, given the settings of its group.
_Starts: TypeAlias = Callable[[Mapping[str, Any]], dict[str, float]]


def _zeros(*names: str) -> _Starts:
    return lambda group: dict.fromkeys(names, 0.0)


#: Of the classes whose rows are independent of one another. Where a state is no row's, as that of
#: Adafactor's columns, or begins as something else, as ASGD's average, there is no entry.
_STARTS: dict[type[Optimizer], _Starts] = {
    FusedOptimizer: _zeros("sum", "exp_avg", "exp_avg_sq"),
    RowWiseAdagrad: _zeros("sum"),
    torch.optim.SGD: _zeros("momentum_buffer"),
    torch.optim.Adagrad: lambda group: {"sum": group["initial_accumulator_value"]},
    torch.optim.Adam: _zeros("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    torch.optim.SparseAdam: _zeros("exp_avg", "exp_avg_sq"),
    torch.optim.NAdam: _zeros("exp_avg", "exp_avg_sq"),
    torch.optim.RAdam: _zeros("exp_avg", "exp_avg_sq"),
    torch.optim.Adamax: _zeros("exp_avg", "exp_inf"),
    torch.optim.RMSprop: _zeros("square_avg", "momentum_buffer", "grad_avg"),
    torch.optim.Adadelta: _zeros("square_avg", "acc_delta"),
}


class OptimizerGrowth:
    """The states of optimizers after some of their parameters have grown; made before any is.

    Args:
        optimizers: those that train the parameters.
        grown: the parameters.

    Raises:
        ConversionError: what an optimizer keeps is not known to be a row's.
    """

    def __init__(self, optimizers: Sequence[Optimizer], grown: Sequence[GrownParameter]) -> None:
        self._found: list[tuple[Optimizer, GrownParameter, dict[str, Any]]] = []
        for optimizer in optimizers:
            held = {
                id(parameter): group
                for group in optimizer.param_groups
                for parameter in group["params"]
            }
            for one in grown:
                group = held.get(id(one.old))
                if group is not None:
                    self._found.append((optimizer, one, _state(optimizer, one, group)))

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether an optimizer trains it."""
        return any(one.old is parameter for _, one, _ in self._found)

    def apply(self) -> None:
        """Put the new parameters in the place of the old, in groups and states."""
        for optimizer, one, state in self._found:
            for group in optimizer.param_groups:
                group["params"][:] = [one.new if p is one.old else p for p in group["params"]]
            optimizer.state.pop(one.old, None)
            if state:
                optimizer.state[one.new] = state
            if isinstance(optimizer, WholeModel):
                optimizer.rows_replaced(one.old, one.new)


def _state(optimizer: Optimizer, one: GrownParameter, group: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer keeps of a parameter, with rows for those that begin."""
    kind = next((each for each in type(optimizer).__mro__ if each in _STARTS), None)
    name = type(optimizer).__name__
    if kind is None:
        known = ", ".join(each.__name__ for each in _STARTS)
        raise ConversionError(
            f"optimizer {name}: how the state of a new row begins is known of {known}, and of "
            f"mlet's own; grow the model without it, and make it anew"
        )
    starts = _STARTS[kind](group)
    made = {}
    for part, value in optimizer.state.get(one.old, {}).items():
        if isinstance(value, Tensor) and value.dim() > 0:
            if part not in starts or len(value) != len(one.old):
                raise ConversionError(
                    f"optimizer {name}: its state {part!r} {tuple(value.shape)} is not known to "
                    f"have a row for each category; grow the model without it, and make it anew"
                )
            value = one.grown(value, starts[part])
        made[part] = value
    return made
