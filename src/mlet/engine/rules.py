"""How a row moves, given its gradient: the rules that fused updates know.

For a row θ (w wide) with gradient g and step size η; with weight decay λ, g is first replaced by
g + λθ. **Weight decay, like everything else here, acts on touched rows only**: a category that is
not in the batch neither decays nor moves, as with torch's sparse optimizers.

====================  ==========================================  ==============
rule                  update                                      state per row
====================  ==========================================  ==============
SGD                   θ ← θ − η g                                 none
Adagrad               s ← s + g²;  θ ← θ − η g / (√s + ε)         w floats
row-wise Adagrad      s ← s + ‖g‖²/w;  θ ← θ − η g / (√s + ε)     1 float
lazy Adam             m, v of the row alone (torch's SparseAdam)  2 w floats
====================  ==========================================  ==============

Lazy Adam's bias correction counts the steps of the optimizer, not those of the row. States are
float32 whatever the table's dtype (float64 for float64 tables).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from mlet.engine.large_pages import empty_rows


class RuleName(IntEnum):
    """A rule, and its number in kernels."""

    SGD = 0
    ADAGRAD = 1
    ROWWISE_ADAGRAD = 2
    ADAM = 3


@dataclass(frozen=True)
class Rule:
    """A rule with its settings.

    Attributes:
        name: which.
        lr: step size η; of lazy Adam the bias-corrected one, ``η √(1 − β₂ᵗ) / (1 − β₁ᵗ)``.
        weight_decay: λ.
        eps: ε, outside the root.
        betas: β₁, β₂ of Adam.
        seed: of the stochastic rounding of 16-bit tables; another one for every step.
    """

    name: RuleName
    lr: float
    weight_decay: float = 0.0
    eps: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int = 0

    @staticmethod
    def adam_lr(lr: float, betas: tuple[float, float], step: int) -> float:
        """Step size of step ``step`` (from 1), with both bias corrections in it."""
        return lr * math.sqrt(1.0 - betas[1] ** step) / (1.0 - betas[0] ** step)


#: The columns of each state tensor as a function of the row's width.
STATE_NAMES: dict[RuleName, tuple[str, ...]] = {
    RuleName.SGD: (),
    RuleName.ADAGRAD: ("sum",),
    RuleName.ROWWISE_ADAGRAD: ("sum",),
    RuleName.ADAM: ("exp_avg", "exp_avg_sq"),
}


def new_state(
    name: RuleName,
    table: Tensor,
    zeros: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Zero state of a parameter: tensors of its shape, (n × 1) of row-wise Adagrad; on its device,
    or as ``zeros`` makes them."""
    shape = (len(table), 1) if name is RuleName.ROWWISE_ADAGRAD else tuple(table.shape)
    dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
    if zeros is not None:
        return {part: zeros(shape, dtype) for part in STATE_NAMES[name]}
    return {part: empty_rows(shape, dtype, table.device).zero_() for part in STATE_NAMES[name]}


def check_state(name: RuleName, table: Tensor, state: Mapping[str, Tensor] | None) -> None:
    """Refuse a state that is not as `new_state` makes it; None or an empty one is a new start.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or dtype.
    """
    if not state:
        return
    expected = {
        part: (tuple(tensor.shape), tensor.dtype)
        for part, tensor in new_state(name, table.detach().to("meta")).items()
    }
    found = {
        part: (tuple(tensor.shape), tensor.dtype) if isinstance(tensor, Tensor) else type(tensor)
        for part, tensor in state.items()
    }
    if found != expected:
        raise ValueError(
            f"the state of a {tuple(table.shape)} parameter is {found}, expected {expected}"
        )


def apply_rule(values: Tensor, grad: Tensor, rule: Rule, state: tuple[Tensor, ...]) -> None:
    """The rules as equations, on gathered rows (R × w) and their state, in place."""
    if rule.weight_decay:
        grad = grad + rule.weight_decay * values
    if rule.name is RuleName.SGD:
        step = grad
    elif rule.name is RuleName.ADAM:
        mean, square = state
        mean += (1.0 - rule.betas[0]) * (grad - mean)
        square += (1.0 - rule.betas[1]) * (grad.square() - square)
        step = mean / (square.sqrt() + rule.eps)
    else:
        (total,) = state
        squares = grad.square()
        rowwise = rule.name is RuleName.ROWWISE_ADAGRAD
        total += squares.mean(dim=1, keepdim=True) if rowwise else squares
        step = grad / (total.sqrt() + rule.eps)
    values -= rule.lr * step
