"""What weight decay on factors means for the table: the identities in docs/theory.md."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.engine.rules import Rule, RuleName, apply_rule, new_state
from mlet.nn.init import balanced_factors


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 9), st.integers(1, 4), st.integers(0, 3), st.integers(0, 10_000))
def test_decay_of_both_factors_is_the_nuclear_norm(n: int, d: int, extra: int, seed: int) -> None:
    table = matrix(n, d, seed)
    nuclear = torch.linalg.svdvals(table).sum()
    inner, projection = balanced_factors(table, d + extra, extra_std=0.0)
    torch.testing.assert_close(inner @ projection, table)
    cost = 0.5 * (inner.square().sum() + projection.square().sum())
    torch.testing.assert_close(cost, nuclear)
    # Any other pair with the same product costs more.
    mix = matrix(d + extra, d + extra, seed + 1)
    if torch.linalg.cond(mix) < 1e4:
        other, rest = inner @ mix, torch.linalg.solve(mix, projection)
        torch.testing.assert_close(other @ rest, table, rtol=1e-6, atol=1e-6)
        assert 0.5 * (other.square().sum() + rest.square().sum()) >= nuclear - 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 10_000))
def test_a_row_is_charged_by_the_projection_s_covariance(d: int, extra: int, seed: int) -> None:
    projection, row = matrix(d + extra, d, seed), matrix(1, d, seed + 1)
    gram = projection.T @ projection
    if torch.linalg.cond(gram) > 1e6:
        return
    shortest = row @ torch.linalg.pinv(projection)
    torch.testing.assert_close(shortest @ projection, row)
    expected = (row @ torch.linalg.solve(gram, row.T)).squeeze()
    torch.testing.assert_close(shortest.square().sum(), expected, rtol=1e-6, atol=1e-9)
    # Gradient descent from zero finds it: it never leaves the span of the projection's columns.
    found = torch.zeros(1, d + extra, dtype=torch.float64)
    rate = 1.0 / float(torch.linalg.eigvalsh(gram).max())
    for _ in range(5_000):
        found -= rate * (found @ projection - row) @ projection.T
    inside = shortest @ projection @ torch.linalg.solve(gram, projection.T)
    torch.testing.assert_close(inside, shortest, rtol=1e-6, atol=1e-9)
    outside = found - found @ projection @ torch.linalg.solve(gram, projection.T)
    torch.testing.assert_close(outside, torch.zeros_like(outside), atol=1e-9, rtol=0)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_how_far_undamped_steps_carry_a_row_of_noise(steps: int) -> None:
    def spread(eps: float, size: float) -> float:
        rows = torch.zeros(4_000, 4)
        rule = Rule(RuleName.ADAGRAD, lr=0.1, eps=eps)
        state = tuple(new_state(RuleName.ADAGRAD, rows).values())
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            signs = torch.randint(0, 2, rows.shape, generator=generator) * 2.0 - 1.0
            apply_rule(rows, size * signs, rule, state)
        return float(rows.square().mean().sqrt())

    harmonic = sum(1 / n for n in range(1, steps + 1)) ** 0.5
    for size in (1e-6, 1.0):
        assert spread(0.0, size) == pytest.approx(0.1 * harmonic, rel=0.05), "whatever the size"
    damped = spread(1.0, 1e-3)
    assert damped == pytest.approx(0.1 * 1e-3 * steps**0.5, rel=0.05), "as small as the gradients"
