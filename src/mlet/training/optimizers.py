"""Optimizers of a model, from its configuration."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlet.models import CTRModel
from mlet.nn.stacked_tables import StackedTables
from mlet.optim import (
    FusedAdagrad,
    FusedLazyAdam,
    FusedOptimizer,
    FusedRowWiseAdagrad,
    FusedSGD,
)
from mlet.training.config import DenseOptimizerConfig, OptimizerName, OptimizersConfig

_EPS = 1e-8

_TABLES: dict[OptimizerName, Callable[..., FusedOptimizer]] = {
    "sgd": FusedSGD,
    "adagrad": FusedAdagrad,
    "rowwise_adagrad": FusedRowWiseAdagrad,
    "adam": FusedLazyAdam,
}


def _dense(config: DenseOptimizerConfig, parameters: Sequence[nn.Parameter]) -> Optimizer:
    lr, weight_decay = config.learning_rate, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)
    if config.name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=lr, weight_decay=weight_decay, eps=_EPS)
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, eps=_EPS)


def _bias_lr(config: OptimizersConfig) -> float | None:
    """The dense layers' step size in units of the tables', if both are the same method's."""
    tables, dense = config.tables, config.dense
    if tables.name.removeprefix("rowwise_") != dense.name:
        return None
    return dense.learning_rate / tables.learning_rate


class Optimizers:
    """The optimizers of embeddings (tables and projections) and dense layers, stepped together.

    Args:
        config: their settings.
        model: what they train.
        batch_size: rows over which the loss is averaged; damping is in units of one row's gradient.
    """

    def __init__(self, config: OptimizersConfig, model: CTRModel, batch_size: int) -> None:
        tables = config.tables
        self._optimizers: dict[str, Optimizer] = {}
        embedding: set[int] = set()
        # What some compression methods have beside stacked tables, or instead of them, is dense.
        stacks = nn.ModuleList(p for p in model.modules() if isinstance(p, StackedTables))
        if len(stacks):
            with warnings.catch_warnings():
                # It warns that processes are left to whoever trains with it: here they are not.
                warnings.filterwarnings("ignore", "an optimizer of tables alone")
                embeddings = _TABLES[tables.name](
                    stacks,
                    lr=tables.learning_rate,
                    weight_decay=tables.weight_decay,
                    projection_lr=tables.projection_lr,
                    bias_lr=_bias_lr(config),
                    matched_steps=tables.matched_steps,
                    **({} if tables.name == "sgd" else {"eps": _EPS + tables.damping / batch_size}),
                )
            (group,) = embeddings.param_groups
            embedding = {id(parameter) for parameter in group["params"]}
            self._optimizers["embeddings"] = embeddings
        dense = [p for p in model.parameters() if p.requires_grad and id(p) not in embedding]
        if dense:
            self._optimizers["dense"] = _dense(config.dense, dense)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update all parameters."""
        for optimizer in self._optimizers.values():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each, by what it optimizes."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    @property
    def all(self) -> list[Optimizer]:
        """Each of them."""
        return list(self._optimizers.values())

    def of_tables(self) -> list[nn.Parameter]:
        """What the tables' optimizer trains, in the order of its state."""
        (group,) = self._optimizers["embeddings"].param_groups
        return list(group["params"])

    def go_on_from(self, other: Optimizers) -> None:
        """Take over what another one has kept of equal parameters; settings stay as they are.

        Raises:
            ValueError, KeyError: it is that of other parameters, or of another optimizer.
        """
        state = {}
        for name, optimizer in self._optimizers.items():
            then, now = (each.state_dict() for each in (other._optimizers[name], optimizer))
            counts = [{k: v for k, v in g.items() if k == "step"} for g in then["param_groups"]]
            groups = zip(now["param_groups"], counts, strict=True)
            state[name] = {**then, "param_groups": [{**group, **count} for group, count in groups]}
        self.load_state_dict(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError, KeyError: it is that of other parameters, or of another optimizer.
        """
        for name, optimizer in self._optimizers.items():
            given = state[name]
            if name == "dense":
                _check_shapes(optimizer, given)
                given = copy.deepcopy(given)  # torch would go on with these very tensors
            optimizer.load_state_dict(given)


def _check_shapes(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """torch would take tensors of any shape, and fail at a later step, or not at all."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, tensors in state["state"].items():
        for name, value in tensors.items():
            scalar = not isinstance(value, Tensor) or value.dim() == 0
            if not scalar and value.shape != parameters[place].shape:
                raise ValueError(
                    f"state {name} of a {tuple(parameters[place].shape)} parameter has shape "
                    f"{tuple(value.shape)}"
                )
