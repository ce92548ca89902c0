"""One optimizer for a whole model: torch's own, with two-layer tables trained by touched rows."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from mlet.engine import (
    RowGradient,
    Rule,
    RuleName,
    choose_backend,
    new_state,
    rows_of,
)
from mlet.engine.rules import STATE_NAMES, check_state
from mlet.optim.fused_optimizer import Tables
from mlet.optim.matched_steps import StepFactors, matched_steps
from mlet.optim.processes import Processes
from mlet.optim.rowwise_adagrad import RowWiseAdagrad


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


@dataclass(frozen=True)
class _Owner:
    """Whose rows a parameter is, and what its steps are multiplied by."""

    table: Tables
    rule: RuleName
    matched: bool

    @cached_property
    def factors(self) -> StepFactors:
        """Of the rows' step size, which is the projection's too, and of ε."""
        std = self.table.projection_std
        if std is None or not self.matched:
            return StepFactors(1.0, 1.0)
        assert self.table.inner_dim is not None
        return matched_steps(self.rule, self.table.inner_dim, self.table.projection.shape[-1], std)


class _WholeModel(Optimizer):
    """Mixed into a class of torch's: it never sees the rows' gradients."""

    rule_name: ClassVar[RuleName]
    #: Options of the class that a row has no lazy form of, and what they must be.
    unserved: ClassVar[dict[str, Any]] = {"maximize": False, "differentiable": False}
    #: Of options, where they are not those of torch's class.
    own_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        tables: Sequence[Tables],
        params: Iterable[Any],
        *,
        matched: bool,
        **options: Any,
    ) -> None:
        self._owners = {
            id(table.stacked): _Owner(table, self.rule_name, matched)
            for table in tables
            if table.stacked.requires_grad
        }
        for owner in self._owners.values():
            if owner.table.row_gradients is not None or owner.table.factored_gradient:
                raise ValueError("another fused optimizer already trains these tables; detach() it")
        self._tables = list(tables)
        self._matched = matched
        self._later: list[tuple[dict[str, Any], list[Any]]] | None = []
        super().__init__(params, **options)
        # torch's fused kernels would unscale what they see, and they do not see the rows.
        self._step_supports_amp_scaling = False
        # Some of torch's classes make a state for all they have at first; the rows have their own.
        later, self._later = self._later or [], None
        for group, given in later:
            _complete(group, given)
        self._trained: list[Tables] = []
        self._claim()
        self._release = weakref.finalize(self, _release, self._trained)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of torch's class."""
        given = param_group["params"]
        given = [given] if isinstance(given, Tensor) else list(given)
        known = {id(p) for p in self._rows()} if self.param_groups else set()
        if self._later:
            known |= {id(_tensor(each)) for _, others in self._later for each in others}
        if any(id(_tensor(each)) in known & set(self._owners) for each in given):
            raise ValueError("some parameters appear in more than one parameter group")
        rest = [each for each in given if id(_tensor(each)) not in self._owners]
        super().add_param_group({**param_group, "params": rest})
        group = self.param_groups[-1]
        self._check(group)
        if self._later is not None:
            self._later.append((group, given))
        else:
            _complete(group, given)
            self._claim()

    def trained_tables(self) -> list[Tables]:
        """Those whose rows are trained here."""
        return list(self._trained)

    def detach(self) -> None:
        """Stop training the tables: their gradients are ordinary tensors again."""
        self._release()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held: list[tuple[Tensor, Tensor]] = []
        before: list[tuple[Tensor, Tensor, float]] = []
        for group in self.param_groups:
            self._check(group)
            for parameter in group["params"]:
                owner = self._owners.get(id(parameter))
                if owner is None or parameter.grad is None:
                    continue
                if owner.table.stacked is not parameter:
                    raise RuntimeError(
                        "the tables' parameters are others than when this optimizer was made, as "
                        "after load_state_dict(assign=True): make it anew and load its state_dict"
                    )
                # Rows first: their gradient is that of the projection as it was.
                self._update(parameter, owner, group)
                held.append((parameter, parameter.grad))
                if owner.factors.lr != 1.0 and owner.table.projection.grad is not None:
                    projection = owner.table.projection
                    before.append((projection, projection.detach().clone(), owner.factors.lr))
        for rows, _ in held:
            rows.grad = None
        try:
            self._torch_step()
        finally:
            for rows, grad in held:
                rows.grad = grad
        for stepped, old, factor in before:
            # Every rule's step is its step size times what does not depend on it.
            stepped.copy_(torch.lerp(old, stepped.detach(), factor))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave, of this optimizer or of torch's on the same model.

        Raises:
            ValueError: a state has not the shape and dtype of its parameter's: kernels write where
                it says.
        """
        given = state_dict["state"]
        places = [p for group in self.param_groups for p in group["params"]]
        for place, parameter in enumerate(places):
            state = given.get(place)
            if id(parameter) in self._owners and state:
                own = {name: value for name, value in state.items() if name != "step"}
                check_state(self.rule_name, parameter, own)
        super().load_state_dict(state_dict)
        # torch casts states to their parameter's dtype; those of 16-bit tables are float32.
        places = [p for group in self.param_groups for p in group["params"]]
        for place, parameter in enumerate(places):
            if id(parameter) in self._owners:
                for name, value in given.get(place, {}).items():
                    if name != "step":
                        kept = value.to(parameter.device, copy=True).contiguous()
                        self.state[parameter][name] = kept

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (
            type(self),
            self._tables,
            self.param_groups,
            self._matched,
            dict(self.state),
        )

    def _rows(self) -> list[nn.Parameter]:
        """The parameters whose rows are trained here."""
        return [p for group in self.param_groups for p in group["params"] if id(p) in self._owners]

    def _claim(self) -> None:
        """Let the tables among the parameters give the gradients that are taken here."""
        rows = {id(parameter) for parameter in self._rows()}
        self._trained[:] = [table for table in self._tables if id(table.stacked) in rows]
        for table in self._trained:
            table.factored_gradient = True

    def _check(self, group: dict[str, Any]) -> None:
        for name, value in self.unserved.items():
            if group.get(name, value) != value:
                raise ValueError(
                    f"{name}={group[name]} has no form that moves touched rows alone: leave it "
                    f"{value}, or use torch's own optimizer, more slowly"
                )

    def _torch_step(self) -> None:
        """That of torch's class, without the hooks, which are called around ours."""
        step: Any = super().step
        function = step.__func__
        while getattr(function, "hooked", False):
            function = function.__wrapped__
        function(self)

    def _update(self, parameter: nn.Parameter, owner: _Owner, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state.update(new_state(self.rule_name, parameter))
            self._start(state, group)
        state["step"] += 1
        count = int(state["step"])
        # Another one for every step and table; only 16-bit tables are rounded by it.
        place = list(self._owners).index(id(parameter))
        seed = (count * 0x9E3779B1 + place * 0x85EBCA6B) % 2**31
        rule = self._rule(group, count, owner.factors, seed)
        rows, values = rows_of(parameter.grad)
        values = values.to(torch.float64 if parameter.dtype == torch.float64 else torch.float32)
        table = parameter.detach()
        self._decay(table, rows, group, owner.factors.lr)
        starts = owner.table.stack.starts_in(rows) if len(owner.table.stack) > 1 else (0, len(rows))
        parts = tuple(state[name] for name in STATE_NAMES[self.rule_name])
        gradient = RowGradient(rows, starts, values.contiguous())
        choose_backend(table).update(table, None, gradient, rule, parts)

    def _start(self, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Fill a new state."""

    def _decay(self, table: Tensor, rows: Tensor, group: dict[str, Any], factor: float) -> None:
        """Decay apart from the gradient, where the class has one; by a step size times this."""

    def _rule(self, group: dict[str, Any], count: int, factors: StepFactors, seed: int) -> Rule:
        """That of a step."""
        raise NotImplementedError


class _SGD(_WholeModel, SGD):
    rule_name = RuleName.SGD
    unserved: ClassVar[dict[str, Any]] = {**_WholeModel.unserved, "momentum": 0}

    def _rule(self, group: dict[str, Any], count: int, factors: StepFactors, seed: int) -> Rule:
        return Rule(RuleName.SGD, float(group["lr"]) * factors.lr, group["weight_decay"], seed=seed)


class _Adagrad(_WholeModel, Adagrad):
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


class _Adam(_WholeModel, Adam):
    rule_name = RuleName.ADAM
    unserved: ClassVar[dict[str, Any]] = {
        **_WholeModel.unserved,
        "amsgrad": False,
        "capturable": False,
    }

    def _decay(self, table: Tensor, rows: Tensor, group: dict[str, Any], factor: float) -> None:
        if group["decoupled_weight_decay"] and group["weight_decay"]:
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


_KINDS: dict[type[Optimizer], type[_WholeModel]] = {
    SGD: _SGD,
    Adagrad: _Adagrad,
    RowWiseAdagrad: _RowWiseAdagrad,
    Adam: _Adam,
    AdamW: _AdamW,
}


def _tensor(given: Any) -> Any:
    """Of a parameter, or of its name and it."""
    return given[1] if isinstance(given, tuple) else given


def _complete(group: dict[str, Any], given: list[Any]) -> None:
    """Put back what torch's class was not shown."""
    group["params"] = [_tensor(each) for each in given]
    if given and isinstance(given[0], tuple):
        group["param_names"] = [name for name, _ in given]


def _rebuilt(
    kind: type[_WholeModel],
    tables: list[Tables],
    groups: list[dict[str, Any]],
    matched: bool,
    state: dict[Any, Any],
) -> _WholeModel:
    """A copy, of the tables and parameters that were copied with it."""
    groups = [dict(group) for group in groups]
    for group in groups:
        names = group.pop("param_names", None)
        if names is not None:
            group["params"] = list(zip(names, group["params"], strict=True))
    made = kind(tables, groups, matched=matched)
    made.state.update(state)
    return made


def _release(tables: list[Tables]) -> None:
    for table in tables:
        table.factored_gradient = False
