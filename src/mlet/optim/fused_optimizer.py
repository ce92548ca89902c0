"""Optimizers that turn a batch's gradient into new rows in one pass of the engine."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from mlet.engine import (
    RowGradient,
    Rule,
    RuleName,
    choose_backend,
    new_state,
    rows_of,
    update_rows,
)
from mlet.engine.rounding import compute_dtype
from mlet.engine.rules import STATE_NAMES, apply_rule, check_state
from mlet.nn.factored import Factored, qualified
from mlet.nn.stacked_tables import StackedTables
from mlet.nn.two_layer import TwoLayerTable
from mlet.optim.matched_steps import StepFactors, matched_steps

#: ε of what all rows share.
_SHARED_EPS = 1e-8

#: What has rows to train: tables of a `FieldEmbedding`, or one that is a layer by itself.
Tables: TypeAlias = StackedTables | TwoLayerTable


class FusedOptimizer(Optimizer):
    """Base of the fused optimizers; use one of its subclasses.

    It takes a module, not parameters, and trains the tables of every `mlet.nn.FieldEmbedding`,
    `mlet.Embedding` and `mlet.EmbeddingBag` in it: tables by touched rows (see `mlet.engine.rules`
    for the equations and the state), and with the same rule, densely (row-wise Adagrad: by plain
    Adagrad), what all rows of a table share, projections and biases, unless it was frozen when the
    optimizer was made. Its step size is ``projection_lr`` times the tables'; that of biases
    ``bias_lr`` times, where it is given: every row of a batch moves them, as a dense layer.

    With ``matched_steps``, the step size and ``eps`` of the rows of a two-layer table, and the step
    size of its projection, are multiplied by factors which make its first step as long as that of
    an ordinary table (`mlet.optim.matched_steps`): one setting then serves both.

    ``eps`` is that of the tables' rows. A large one, beside √s of a row that was touched a few
    times, makes its steps as small as its gradients: rare categories then move by what is known of
    them, not by a whole step size whatever it is (``docs/training.md``). What all rows share is
    touched at every step and needs none: it has 1e-8.

    While it lives, the backward pass leaves gradients in the d-wide form that `step` takes,
    and **the ``.grad`` of tables and projections stays None**: what reads ``.grad`` (clipping by
    norm, `DistributedDataParallel`, gradient scaling) does not see them. `mlet.optim.fused` is
    for where you need it; torch's optimizers work too, more slowly. Several backward passes before
    one step add up, `zero_grad` forgets them, schedulers work as usual. To skip a batch
    whose backward pass was done, call the ``zero_grad`` of the optimizer or of the embedding: that
    of a model around it does not reach what is left here.

    Where the engine does not serve a layer (``torch.compile``, ``max_norm``: see
    `mlet.engine.engine_serves`) the backward pass gives ``.grad`` as without this optimizer, and so
    does a penalty on the factors; `step` adds it to what else there is, takes the rows in which it
    is not zero for touched, and applies the same rule.

    A copy of a model together with its optimizer (``copy.deepcopy((model, optimizer))``,
    ``torch.save``) goes on as the originals do; a copy of the optimizer alone trains tables of its
    own.

    16-bit tables (``FieldEmbedding(table_dtype=…)``) are rounded stochastically, by a seed drawn
    from torch's generator when the optimizer is made; it is part of `state_dict`.
    """

    rule_name: ClassVar[RuleName]

    def __init__(self, module: nn.Module, defaults: dict[str, Any]) -> None:
        tables = [part for part in module.modules() if isinstance(part, Tables)]
        trained = {id(parameter) for table in tables for parameter in table.parameters()}
        left = [
            qualified(name, of_part)
            for name, part in module.named_modules()
            if isinstance(part, Factored)
            for of_part, parameter in part.named_parameters()
            if parameter.requires_grad and id(parameter) not in trained
        ]
        if left:
            raise ValueError(
                f"a fused optimizer trains tables that are rows of numbers, not "
                f"{', '.join(left)}: use torch's optimizers for those, and give this one "
                f"torch.nn.ModuleList(embedding.stacks()) where there are others"
            )
        if not tables:
            raise ValueError(
                f"{type(module).__name__} has no FieldEmbedding, mlet.Embedding or "
                f"mlet.EmbeddingBag to train"
            )
        for name in ("lr", "projection_lr", "weight_decay", "eps"):
            if defaults[name] < 0:
                raise ValueError(f"{name} must not be negative, got {defaults[name]}")
        if (defaults["bias_lr"] or 0) < 0:
            raise ValueError(f"bias_lr must not be negative, got {defaults['bias_lr']}")
        if not all(0 <= beta < 1 for beta in defaults["betas"]):
            raise ValueError(f"betas must lie in [0, 1), got {defaults['betas']}")
        if any(table.row_gradients is not None for table in tables):
            raise ValueError("another fused optimizer already trains these tables; detach() it")
        if distributed.is_available() and distributed.is_initialized():
            warnings.warn(
                "an optimizer of tables alone does not average gradients over processes; with "
                "DistributedDataParallel, use mlet.optim.fused",
                UserWarning,
                stacklevel=3,
            )
        if not all(table.stacked.requires_grad for table in tables):
            raise ValueError("a fused optimizer cannot leave tables frozen; use torch's optimizers")
        parameters = [p for table in tables for p in table.parameters() if p.requires_grad]
        seed = int(torch.randint(2**31, ()))
        super().__init__(parameters, {**defaults, "step": 0, "seed": seed})
        self._tables = tables
        for table in tables:
            table.row_gradients = []
        gradients = [(table, table.row_gradients) for table in tables]
        self._release = weakref.finalize(self, _release, gradients)

    def detach(self) -> None:
        """Stop training the tables: their gradients go to ``.grad`` again."""
        self._release()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of backward passes since the last step."""
        super().zero_grad(set_to_none)
        for table in self._tables:
            if table.row_gradients:
                table.row_gradients.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all rows that were touched, and the projections."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        held = [parameter for table in self._tables for parameter in table.parameters()]
        if not {id(parameter) for parameter in group["params"]} <= {id(p) for p in held}:
            raise RuntimeError(
                "the tables' parameters are others than when this optimizer was made, as after "
                "load_state_dict(assign=True): make it anew and load its state_dict"
            )
        if not all(parameter.requires_grad for parameter in group["params"]):
            raise RuntimeError(
                "a fused optimizer trains all that could be trained when it was made; to freeze "
                "some of it later, use torch's optimizers"
            )
        group["step"] += 1
        lr = group["lr"]
        if self.rule_name is RuleName.ADAM:
            lr = Rule.adam_lr(lr, group["betas"], group["step"])
        rule = Rule(
            self.rule_name,
            lr,
            group["weight_decay"],
            group["eps"],
            group["betas"],
            (group["seed"] + group["step"] * 0x9E3779B1) % 2**31,
        )
        for table in self._tables:
            own = self._rule_for(table, rule)
            gradient = None
            if table.row_gradients:
                gradient = RowGradient.merge(table.row_gradients, table.stack)
                table.row_gradients.clear()
            if isinstance(table, StackedTables) and table.sharded:
                self._update_shard(table, gradient, own)
            elif table.stacked.grad is not None or _projection_grad(table) is not None:
                self._update_by_grad(table, gradient, own)
            elif gradient is not None:
                self._update(table, gradient, own)
            bias = table.table_bias if isinstance(table, StackedTables) else None
            if bias is not None and bias.requires_grad and bias.grad is not None:
                bias_lr = group["bias_lr"]
                ratio = group["projection_lr"] if bias_lr is None else bias_lr
                self._update_shared(bias, bias.grad, rule, ratio)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        torch would cast states to their parameter's dtype; those of 16-bit tables are float32.

        Raises:
            ValueError: a state has not the shape and dtype of its parameter's, or none belongs to
                it: kernels write where it says.
        """
        (group,) = self.param_groups
        stacked = {id(table.stacked) for table in self._tables}
        for place, parameter in enumerate(group["params"]):
            check_state(
                self._rule_of(id(parameter) in stacked), parameter, state_dict["state"].get(place)
            )
        super().load_state_dict({**state_dict, "state": {}})
        (group,) = self.param_groups
        group.setdefault("projection_lr", 1.0)  # mlet 0.1 had none
        group.setdefault("matched_steps", False)
        group.setdefault("bias_lr", None)
        for place, parameter in enumerate(group["params"]):
            given = state_dict["state"].get(place)
            if given:
                made = self._new_state(parameter, self._rule_of(id(parameter) in stacked))
                self.state[parameter] = {n: made[n].copy_(value) for n, value in given.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self._tables, self.state_dict())

    def _rule_of(self, stacked: bool) -> RuleName:
        """The rule of the tables, or of the projections: dense."""
        dense = RuleName.ADAGRAD if self.rule_name is RuleName.ROWWISE_ADAGRAD else self.rule_name
        return self.rule_name if stacked else dense

    def _rule_for(self, table: Tables, rule: Rule) -> Rule:
        """The rule of one stack's rows."""
        (group,) = self.param_groups
        if not group["matched_steps"]:
            return rule
        factors = factors_of(table, rule.name)
        return replace(rule, lr=rule.lr * factors.lr, eps=rule.eps * factors.eps)

    def _update(self, table: Tables, gradient: RowGradient, rule: Rule) -> None:
        projections = projections_of(table)
        backend = choose_backend(table.stacked)
        state = self._state(table.stacked, self.rule_name)
        projection_grad = backend.update(table.stacked.detach(), projections, gradient, rule, state)
        if projection_grad is not None and table.projection.requires_grad:
            self._update_shared(table.projection, projection_grad, rule)

    def _update_shard(self, table: StackedTables, gradient: RowGradient | None, rule: Rule) -> None:
        """The rows that are here, by the sum of all processes' gradients; W1 by its ``.grad``, to
        which other processes' rows have added."""
        if gradient is not None:
            choose_backend(table.stacked).update(
                table.stacked.detach(),
                projections_of(table),
                gradient,
                rule,
                self._state(table.stacked, self.rule_name),
                projection_grad=False,
            )
        shared = _projection_grad(table)
        if shared is not None and table.projection.requires_grad:
            self._update_shared(table.projection, shared, rule)

    def _update_by_grad(self, table: Tables, gradient: RowGradient | None, rule: Rule) -> None:
        """With what the backward pass left in ``.grad``."""
        stacked, projections = table.stacked.detach(), projections_of(table)
        rows = torch.empty(0, dtype=torch.int64, device=stacked.device)
        values = stacked.new_empty(0, stacked.shape[1])
        if table.stacked.grad is not None:
            rows, values = rows_of(table.stacked.grad)
        shared = _projection_grad(table)
        if gradient is not None:
            gradient = gradient.compact()
            own, own_shared = gradient.sums, None
            if projections is not None:
                backend = choose_backend(stacked)
                own, own_shared = backend.factor_gradients(stacked, projections.detach(), gradient)
                own_shared = own_shared.reshape(table.projection.shape)
            rows, places = torch.unique(torch.cat([rows, gradient.rows]), return_inverse=True)
            given = torch.cat([values.to(own.dtype), own])
            values = own.new_zeros(len(rows), own.shape[1]).index_add_(0, places, given)
            if own_shared is not None:
                shared = own_shared if shared is None else shared + own_shared
        update_rows(stacked, rows, values, rule, self._state(table.stacked, self.rule_name))
        if shared is not None and table.projection.requires_grad:
            self._update_shared(table.projection, shared, rule)

    def _update_shared(
        self, parameter: Tensor, grad: Tensor, rule: Rule, ratio: float | None = None
    ) -> None:
        """Update what all rows of each of T tables share: (T × … × d)."""
        dense = self._rule_of(stacked=False)
        (group,) = self.param_groups
        ratio = group["projection_lr"] if ratio is None else ratio
        rule = replace(rule, name=dense, lr=rule.lr * ratio, eps=_SHARED_EPS)
        rows = parameter.detach().flatten(0, -2)
        states = self._state(parameter, dense)
        grads = grad.to(rows.dtype).reshape(rows.shape)
        flat = tuple(state.flatten(0, -2) for state in states)
        if rows.dtype == compute_dtype(rows):
            apply_rule(rows, grads, rule, flat)
        else:  # rounded stochastically
            update_rows(rows, torch.arange(len(rows), device=rows.device), grads, rule, flat)

    def _state(self, parameter: Tensor, name: RuleName) -> tuple[Tensor, ...]:
        state = self.state[parameter]
        if not state:
            state.update(self._new_state(parameter, name))
        return tuple(state[part] for part in STATE_NAMES[name])

    def _new_state(self, parameter: Tensor, name: RuleName) -> dict[str, Tensor]:
        """Zeros, where the rows are that they are of."""
        stacks = (table for table in self._tables if isinstance(table, StackedTables))
        files = next((table.files for table in stacks if table.stacked is parameter), None)
        return new_state(name, parameter, None if files is None else files.zeros)


def _rebuilt(
    kind: Callable[[nn.Module], FusedOptimizer],
    tables: list[Tables],
    state: dict[str, Any],
) -> FusedOptimizer:
    """A copy, of the tables that were copied with it."""
    optimizer = kind(nn.ModuleList(tables))
    optimizer.load_state_dict(state)
    return optimizer


def factors_of(table: Tables, rule: RuleName) -> StepFactors:
    """What makes steps on a table as long as on an ordinary one: ones, if it is one."""
    std = table.projection_std
    if std is None:
        return StepFactors(1.0, 1.0)
    assert table.inner_dim is not None
    return matched_steps(rule, table.inner_dim, table.projection.shape[-1], std)


def projections_of(table: Tables) -> Tensor | None:
    """W1 of each table, (T × k × d); None of ordinary ones."""
    if table.inner_dim is None:
        return None
    projection: Tensor = table.projection
    return projection if projection.dim() == 3 else projection.unsqueeze(0)


def _projection_grad(table: Tables) -> Tensor | None:
    return None if table.inner_dim is None else table.projection.grad


def _release(trained: list[tuple[Tables, list[RowGradient] | None]]) -> None:
    for table, gradients in trained:
        if table.row_gradients is gradients:
            table.row_gradients = None
