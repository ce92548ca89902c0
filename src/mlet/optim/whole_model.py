"""What makes an optimizer of torch's train two-layer tables by touched rows, the rest as ever."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlet.engine import (
    FactoredGradient,
    RowGradient,
    Rule,
    RuleName,
    choose_backend,
    new_state,
    rows_of,
)
from mlet.engine.rounding import compute_dtype
from mlet.engine.rules import STATE_NAMES, check_state
from mlet.optim.fused_optimizer import Tables, factors_of
from mlet.optim.matched_steps import StepFactors


@dataclass(frozen=True)
class _Owner:
    """Whose rows a parameter is, and what its steps are multiplied by."""

    table: Tables
    rule: RuleName
    matched: bool

    @cached_property
    def factors(self) -> StepFactors:
        """Of the rows' step size, which is the projection's too, and of ε."""
        return factors_of(self.table, self.rule) if self.matched else StepFactors(1.0, 1.0)


class WholeModel(Optimizer):
    """Mixed into a class of torch's, which then never sees the rows' gradients."""

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

    def rows_replaced(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Train other rows of a table, which has ``new`` now, as those before."""
        owner = self._owners.pop(id(old), None)
        if owner is not None:
            self._owners[id(new)] = owner

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
        factors: dict[int, float] = {}
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
                if owner.factors.lr != 1.0:
                    factors[id(owner.table.projection)] = owner.factors.lr
        self._torch_step(factors)
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

    def _torch_step(self, factors: dict[int, float]) -> None:
        """That of torch's class, of all but the rows; of some parameters by so many times a step.

        Without the hooks, which are called around ours.
        """
        step: Any = super().step
        function = step.__func__
        while getattr(function, "hooked", False):
            function = function.__wrapped__
        groups = self.param_groups
        self.param_groups = [part for group in groups for part in self._parts(group, factors)]
        try:
            function(self)
        finally:
            self.param_groups = groups

    def _parts(self, group: dict[str, Any], factors: dict[int, float]) -> Iterator[dict[str, Any]]:
        """A group without the rows, and what of it has a step size of its own."""
        shares: dict[float, list[Tensor]] = {1.0: []}
        for parameter in group["params"]:
            if id(parameter) not in self._owners:
                shares.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
        for factor, parameters in shares.items():
            lr = group["lr"] if factor == 1.0 else group["lr"] * factor
            yield {**group, "params": parameters, "lr": lr}

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
        table = parameter.detach()
        gradient, projection = _factors(parameter.grad, table)
        self._decay(table, gradient, group, owner.factors.lr)
        parts = tuple(state[name] for name in STATE_NAMES[self.rule_name])
        choose_backend(table).update(
            table, projection, gradient, rule, parts, projection_grad=False
        )

    def _start(self, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Fill a new state."""

    def _decay(
        self, table: Tensor, gradient: RowGradient, group: dict[str, Any], factor: float
    ) -> None:
        """Decay apart from the gradient, where the class has one; by a step size times this."""

    def _rule(self, group: dict[str, Any], count: int, factors: StepFactors, seed: int) -> Rule:
        """That of a step."""
        raise NotImplementedError


def _factors(grad: Tensor, table: Tensor) -> tuple[RowGradient, Tensor | None]:
    """G and W1 of a gradient; where it is no product, its rows as those of an ordinary table."""
    factors = grad.factors() if isinstance(grad, FactoredGradient) else None
    if factors is not None:
        return factors
    rows, values = rows_of(grad)
    values = values.to(compute_dtype(table)).contiguous()
    return RowGradient(rows, (0, len(rows)), values), None


def _tensor(given: Any) -> Any:
    """Of a parameter, or of its name and it."""
    return given[1] if isinstance(given, tuple) else given


def _complete(group: dict[str, Any], given: list[Any]) -> None:
    """Put back what torch's class was not shown."""
    group["params"] = [_tensor(each) for each in given]
    if given and isinstance(given[0], tuple):
        group["param_names"] = [name for name, _ in given]


def _rebuilt(
    kind: type[WholeModel],
    tables: list[Tables],
    groups: list[dict[str, Any]],
    matched: bool,
    state: dict[Any, Any],
) -> WholeModel:
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
