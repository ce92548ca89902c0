"""Every line that PAPER marks (derived), against an independent float64 computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlet
from mlet.theory import (
    Factors,
    decompose_preconditioned_update,
    decompose_update,
    preconditioned_steps,
    reweighting,
)


def product(layer: torch.nn.Module) -> torch.Tensor:
    return (layer.inner.detach() @ layer.projection.detach()).double()


shapes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**20))


@settings(max_examples=60, deadline=None)
@given(shape=shapes, lr=st.sampled_from([1e-3, 0.1, 2.0]), bags=st.booleans(), data=st.data())
def test_the_three_parts_add_up_to_a_real_sgd_step(
    shape: tuple[int, int, int, int], lr: float, bags: bool, data: st.DataObject
) -> None:
    n, k, d, seed = shape
    torch.manual_seed(seed)
    kind = mlet.EmbeddingBag if bags else mlet.Embedding
    extra: dict[str, Any] = {"mode": data.draw(st.sampled_from(["sum", "mean"]))} if bags else {}
    layer = kind(n, d, inner_dim=k, **extra).double()
    torch.nn.init.normal_(layer.inner)
    before = product(layer)
    ids = torch.randint(n, (7,))  # repeated ids are likely
    offsets = torch.tensor([0, 3, 3])
    weight = before.clone().requires_grad_()
    if bags:
        out = layer(ids, offsets)
        plain = torch.nn.functional.embedding_bag(ids, weight, offsets, mode=layer.mode)
    else:
        out, plain = layer(ids), torch.nn.functional.embedding(ids, weight)
    upstream = torch.randn_like(out)
    plain.backward(upstream)
    parts = decompose_update(layer, weight.grad, lr)
    sparse = decompose_update(layer, weight.grad.to_sparse(1), lr)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    out.backward(upstream)
    optimizer.step()
    moved = product(layer) - before
    torch.testing.assert_close(parts.total, moved, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sparse.total, moved, rtol=1e-10, atol=1e-10)
    untouched = torch.ones(n, dtype=torch.bool)
    untouched[ids] = False
    assert not parts.direct[untouched].any()
    assert not parts.second_order[untouched].any()


def test_the_parts_are_the_papers_terms() -> None:
    """``ΔW = −η (G W1ᵀW1 + W2W2ᵀ G) + η² G W1ᵀW2ᵀ G``, written out."""
    torch.manual_seed(0)
    w2, w1, g = torch.randn(6, 5).double(), torch.randn(5, 3).double(), torch.randn(6, 3).double()
    parts = decompose_update(Factors(w2, w1), g, 0.3)
    torch.testing.assert_close(parts.direct, -0.3 * g @ w1.T @ w1)
    torch.testing.assert_close(parts.cross, -0.3 * w2 @ w2.T @ g)
    torch.testing.assert_close(parts.second_order, 0.09 * g @ w1.T @ w2.T @ g)


@settings(max_examples=60, deadline=None)
@given(shape=shapes)
def test_a_component_along_singular_directions_is_scaled_by_s2_and_s1_squared(
    shape: tuple[int, int, int, int],
) -> None:
    n, k, d, seed = shape
    torch.manual_seed(seed)
    w2, w1, g = (torch.randn(*s).double() for s in ((n, k), (k, d), (n, d)))
    u2, s2, _ = torch.linalg.svd(w2, full_matrices=True)
    _, s1, v1t = torch.linalg.svd(w1, full_matrices=True)
    s2 = torch.cat([s2, s2.new_zeros(n - len(s2))])
    s1 = torch.cat([s1, s1.new_zeros(d - len(s1))])
    parts = decompose_update(Factors(w2, w1), g, 1.0)
    first_order = u2.T @ -(parts.direct + parts.cross) @ v1t.T
    expected = (s2.square().unsqueeze(1) + s1.square()) * (u2.T @ g @ v1t.T)
    torch.testing.assert_close(first_order, expected, rtol=1e-8, atol=1e-9)
    found = reweighting(Factors(w2, w1))
    spanned = min(n, k)
    torch.testing.assert_close(
        found.factors, s2[:spanned].square().unsqueeze(1) + s1.square(), rtol=1e-6, atol=1e-9
    )
    # Outside the span of W2 the factor is s1² alone; a larger k leaves fewer directions there.
    torch.testing.assert_close(found.outside, s1.square(), rtol=1e-6, atol=1e-9)
    assert found.boosted == int(torch.linalg.matrix_rank(w2)) == spanned
    assert found.left_directions == n


def test_one_layer_scales_every_direction_by_one() -> None:
    """With W2 = W and W1 the identity, held fixed, only the direct part is left: ``−η G``."""
    torch.manual_seed(0)
    g = torch.randn(6, 3).double()
    parts = decompose_update(Factors(torch.zeros(6, 3).double(), torch.eye(3).double()), g, 0.3)
    torch.testing.assert_close(parts.total, -0.3 * g)


@pytest.mark.parametrize("method", ["adagrad", "adam"])
def test_adagrad_and_adam_with_their_preconditioners(method: str) -> None:
    torch.manual_seed(0)
    layer = mlet.Embedding(9, 3, inner_dim=7).double()
    torch.nn.init.normal_(layer.inner)
    build = {
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3),
        # without running means, Adam is a preconditioned step
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9), eps=1e-3),
    }[method]
    optimizer = build(layer.parameters())
    for step in range(1, 4):
        ids = torch.randint(9, (5,))
        before = {"inner": layer.inner.detach().clone(), "projection": layer.projection.clone()}
        factors = Factors(before["inner"], before["projection"].detach())
        weight = (factors.inner @ factors.projection).requires_grad_()
        upstream = torch.randn(5, 3).double()
        torch.nn.functional.embedding(ids, weight).backward(upstream)
        optimizer.zero_grad()
        layer(ids).backward(upstream)
        optimizer.step()

        def scale(parameter: torch.nn.Parameter, step: int = step) -> torch.Tensor:
            state = optimizer.state[parameter]
            if method == "adagrad":
                return 1 / (state["sum"].sqrt() + 1e-3)
            return 1 / ((state["exp_avg_sq"] / (1 - 0.9**step)).sqrt() + 1e-3)

        steps = preconditioned_steps(
            factors, weight.grad, 0.1, scale(layer.inner), scale(layer.projection)
        )
        torch.testing.assert_close(steps[0], layer.inner.detach() - factors.inner)
        torch.testing.assert_close(steps[1], layer.projection.detach() - factors.projection)
        parts = decompose_preconditioned_update(factors, *steps)
        moved = product(layer) - (factors.inner @ factors.projection)
        torch.testing.assert_close(parts.total, moved, rtol=1e-9, atol=1e-12)
        assert parts.cross.any(dim=1).all(), "every category moves"


def test_wrong_shapes_and_ordinary_tables_are_refused() -> None:
    factors = Factors(torch.zeros(4, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"grad has shape \(4, 3\), the table \(4, 2\)"):
        decompose_update(factors, torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"inner_step has shape \(1, 3\), W2 \(4, 3\)"):
        decompose_preconditioned_update(factors, torch.zeros(1, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"projection_step has shape \(3, 1\), W1 \(3, 2\)"):
        decompose_preconditioned_update(factors, torch.zeros(4, 3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="one layer"):
        decompose_update(Factors(torch.zeros(4, 3), None), torch.zeros(4, 3))
