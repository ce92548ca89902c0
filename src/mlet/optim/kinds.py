"""One optimizer for a whole model: torch's own, with two-layer tables trained by touched rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from mlet.engine import RowGradient, Rule, RuleName
from mlet.optim.fused_optimizer import Tables
from mlet.optim.matched_steps import StepFactors
from mlet.optim.processes import Processes
from mlet.optim.rowwise_adagrad import RowWiseAdagrad
from mlet.optim.whole_model import WholeModel


def fused(
    optimizer: type[Optimizer],
    model: nn.Module,
    params: Iterable[Any] | None = None,
    *,
    matched: bool = True,
    **options: Any,
) -> Optimizer:
    """An optimizer of all of a model: two-layer tables by touched rows, the rest by torch's class.

    The rows of `mlet.Embedding`, `mlet.EmbeddingBag` and `mlet.nn.FieldEmbedding` go through the
    rule of the same kind in the engine, in its lazy form: **a row moves, decays and ages only in
    the steps that touch it**, as with torch's sparse optimizers, and never is an n × k gradient
    made. All else, projections, biases and other layers, is stepped by the class that was given.

    What comes back is an optimizer of that class (of `torch.optim.Adagrad` for
    `mlet.optim.RowWiseAdagrad`, whose rule then is that of the tables alone). Parameter groups,
    step sizes of their own, schedulers, closures, ``state_dict``, accumulated gradients,
    `torch.amp.GradScaler` and `torch.nn.utils.clip_grad_norm_` work as with any other: a table's
    ``.grad`` is a `mlet.engine.FactoredGradient`, which can be scaled, added to and have its norm
    taken. A model and its optimizer can be copied or pickled together.

    With `torch.nn.parallel.DistributedDataParallel`, call this before the model is wrapped: rows
    that were looked up and the d-wide sums of their gradients are then exchanged, not tables.

    Args:
        optimizer: `torch.optim.SGD`, `Adagrad`, `Adam`, `AdamW` or `mlet.optim.RowWiseAdagrad`.
            Of Adam, a row's first and second moments change when it is touched; their bias
            correction counts the steps in which the table had a gradient.
        model: its tables are found here.
        params: as torch's optimizers take them; the model's parameters by default. Tables whose
            parameters are not among them, or are frozen, are left alone.
        matched: multiply the step size (and ε) of tables and projections by the factors that make
            the first step as long as that of an ordinary table (`mlet.optim.matched_steps`): a
            step size that was right for the plain model is then right for the converted one.
        options: of the class, as ``lr``.

    Raises:
        TypeError: no rule is that of ``optimizer``.
        ValueError: an option has no lazy form: ``momentum``, ``amsgrad``, ``maximize``,
            ``differentiable``, ``capturable``; or the model is already wrapped, or its tables have
            another fused optimizer.
        UserWarning: (warning) there is no table to train by rows.

    Example:
        >>> model = mlet.convert(model, inner_dim=64)
        >>> optimizer = mlet.optim.fused(torch.optim.Adam, model, lr=1e-3)
    """
    kind = _KINDS.get(optimizer)
    if kind is None:
        names = ", ".join(f"{known.__module__.split('.')[0]} {known.__name__}" for known in _KINDS)
        raise TypeError(
            f"no fused rule is that of {optimizer.__name__}; there are {names}. torch's own "
            f"optimizers train converted models too, more slowly"
        )
    tables = [part for part in model.modules() if isinstance(part, Tables)]
    if not tables:
        warnings.warn(
            f"{type(model).__name__} has no two-layer table, so that this is "
            f"{optimizer.__name__} and nothing else; convert it first",
            UserWarning,
            stacklevel=2,
        )
    given = model.parameters() if params is None else params
    made = kind(tables, given, matched=matched, **{**kind.own_defaults, **options})
    Processes(model, made.trained_tables())
    return made


class _SGD(WholeModel, SGD):
    rule_name = RuleName.SGD
    unserved: ClassVar[dict[str, Any]] = {**WholeModel.unserved, "momentum": 0}

    def _rule(self, group: dict[str, Any], count: int, factors: StepFactors, seed: int) -> Rule:
        return Rule(RuleName.SGD, float(group["lr"]) * factors.lr, group["weight_decay"], seed=seed)


class _Adagrad(WholeModel, Adagrad):
    rule_name = RuleName.ADAGRAD

    def _start(self, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["sum"].fill_(group["initial_accumulator_value"])

    def _rule(self, group: dict[str, Any], count: int, factors: StepFactors, seed: int) -> Rule:
        lr = float(group["lr"]) / (1 + (count - 1) * group["lr_decay"])
        return Rule(
            self.rule_name,
            lr * factors.lr,
            group["weight_decay"],
            group["eps"] * factors.eps,
            seed=seed,
        )


class _RowWiseAdagrad(_Adagrad):
    rule_name = RuleName.ROWWISE_ADAGRAD
    own_defaults: ClassVar[dict[str, Any]] = {"lr": 0.02, "eps": 1e-8}


class _Adam(WholeModel, Adam):
    rule_name = RuleName.ADAM
    unserved: ClassVar[dict[str, Any]] = {
        **WholeModel.unserved,
        "amsgrad": False,
        "capturable": False,
    }

    def _decay(
        self, table: Tensor, gradient: RowGradient, group: dict[str, Any], factor: float
    ) -> None:
        if group["decoupled_weight_decay"] and group["weight_decay"]:
            rows = gradient.compact().rows
            kept = 1.0 - float(group["lr"]) * factor * group["weight_decay"]
            table.index_copy_(0, rows, table.index_select(0, rows) * kept)

    def _rule(self, group: dict[str, Any], count: int, factors: StepFactors, seed: int) -> Rule:
        betas = (float(group["betas"][0]), float(group["betas"][1]))
        # torch's Adam adds ε to the corrected root, our kernels to the one before.
        eps = group["eps"] * (1.0 - betas[1] ** count) ** 0.5
        return Rule(
            RuleName.ADAM,
            Rule.adam_lr(float(group["lr"]) * factors.lr, betas, count),
            0.0 if group["decoupled_weight_decay"] else group["weight_decay"],
            eps * factors.eps,
            betas,
            seed,
        )


class _AdamW(_Adam, AdamW):
    pass


_KINDS: dict[type[Optimizer], type[WholeModel]] = {
    SGD: _SGD,
    Adagrad: _Adagrad,
    RowWiseAdagrad: _RowWiseAdagrad,
    Adam: _Adam,
    AdamW: _AdamW,
}
