"""Steps on the product are as long as those on an ordinary table."""

from __future__ import annotations

import math

import pytest
import torch

from mlet.engine import RuleName
from mlet.engine.rules import Rule, apply_rule, new_state
from mlet.nn import Field, FieldEmbedding
from mlet.optim import FusedAdagrad, FusedLazyAdam, FusedOptimizer, FusedRowWiseAdagrad, FusedSGD
from mlet.optim.matched_steps import matched_steps

RULES = list(RuleName)


def first_steps(rule: RuleName, gradient: torch.Tensor, eps: float) -> torch.Tensor:
    """What rows move by at their first step of size one."""
    rows = torch.zeros_like(gradient)
    state = tuple(new_state(rule, rows).values())
    lr = Rule.adam_lr(1.0, (0.9, 0.999), 1) if rule is RuleName.ADAM else 1.0
    apply_rule(rows, gradient, Rule(rule, lr, eps=eps), state)
    return -rows


def length(rows: torch.Tensor) -> float:
    return float(rows.square().sum(dim=1).mean().sqrt())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("k", "d"), [(64, 2), (64, 16), (16, 4), (128, 1)])
@pytest.mark.parametrize("spread", [1.0, 2.5])
def test_first_steps_are_as_long(rule: RuleName, k: int, d: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    std = spread / math.sqrt(k)
    factors = matched_steps(rule, k, d, std)
    gradient = torch.randn(50, d, generator=generator, dtype=torch.float64)
    gradient *= 0.01 / gradient.norm(dim=1, keepdim=True)
    # ε far below, and far above the gradients of an ordinary table: both ends of damping.
    for eps in (1e-12, 10.0):
        expected = length(first_steps(rule, gradient, eps))
        squares = []
        for _ in range(200):
            projection = std * torch.randn(k, d, generator=generator, dtype=torch.float64)
            inner = factors.lr * first_steps(rule, gradient @ projection.T, eps * factors.eps)
            squares.append(length(inner @ projection) ** 2)
        assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("kind", [FusedSGD, FusedAdagrad, FusedRowWiseAdagrad, FusedLazyAdam])
def test_the_optimizers_step_by_them(kind: type[FusedOptimizer]) -> None:
    moved = {}
    for inner_dim in (None, 64):
        torch.manual_seed(0)
        fields = [Field("user", 2_000, 4, inner_dim)]
        layer = FieldEmbedding(fields, init="variance_matched").double()
        optimizer = kind(layer, lr=0.01, projection_lr=1e-12, matched_steps=True)  # type: ignore[call-arg]
        before = layer.table("user")
        upstream = torch.randn(2_000, 1, 4, dtype=torch.float64)
        (layer(torch.arange(2_000).unsqueeze(1)) * upstream).sum().backward()
        optimizer.step()
        moved[inner_dim] = length(layer.table("user") - before)
    assert moved[64] == pytest.approx(moved[None], rel=0.2), "one projection is drawn, not many"


def test_state_that_was_saved_without_them_goes_on_without_them() -> None:
    layer = FieldEmbedding([Field("user", 9, 2, 8)])
    optimizer = FusedAdagrad(layer, matched_steps=True)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["matched_steps"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["matched_steps"] is False
