"""Optimizers of a model, from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from mlet.models import CTRModel
from mlet.nn.stacked_tables import StackedTables
from mlet.training.config import OptimizersConfig
from mlet.training.rowwise_adagrad import RowWiseAdagrad

_EPS = 1e-8


def _dense(
    name: Literal["sgd", "adagrad", "adam"],
    parameters: Sequence[nn.Parameter],
    learning_rate: float,
    weight_decay: float = 0.0,
) -> Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, weight_decay=weight_decay)
    if name == "adagrad":
        return torch.optim.Adagrad(
            parameters, lr=learning_rate, weight_decay=weight_decay, eps=_EPS
        )
    return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay, eps=_EPS)


def _sparse(name: str, parameters: Sequence[nn.Parameter], learning_rate: float) -> Optimizer:
    """For sparse gradients: none of these touches a row, or its state, that was not queried."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    if name == "adagrad":
        return torch.optim.Adagrad(parameters, lr=learning_rate, eps=_EPS)
    if name == "rowwise_adagrad":
        return RowWiseAdagrad(parameters, lr=learning_rate, eps=_EPS)
    return torch.optim.SparseAdam(parameters, lr=learning_rate, eps=_EPS)


class Optimizers:
    """The optimizers of tables, projections and dense layers, stepped together."""

    def __init__(self, config: OptimizersConfig, model: CTRModel) -> None:
        tables: list[nn.Parameter] = []
        projections: list[nn.Parameter] = []
        for stacked in model.modules():
            if isinstance(stacked, StackedTables):
                tables.append(stacked.stacked)
                if stacked.inner_dim is not None:
                    projections.append(stacked.projection)
        embedding = {id(parameter) for parameter in (*tables, *projections)}
        dense = [p for p in model.parameters() if id(p) not in embedding]
        rate = config.tables.learning_rate
        self._optimizers = {"tables": _sparse(config.tables.name, tables, rate)}
        if projections:
            name = config.tables.name
            self._optimizers["projections"] = _dense(
                "adagrad" if name == "rowwise_adagrad" else name, projections, rate
            )
        self._optimizers["dense"] = _dense(
            config.dense.name, dense, config.dense.learning_rate, config.dense.weight_decay
        )

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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])
