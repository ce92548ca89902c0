"""`mlet.EmbeddingBag` against `torch.nn.EmbeddingBag` holding the product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_paths import PATHS, Tolerance, way_of
from torch import nn
from torch.func import functional_call

import mlet


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=700, deadline=None)
@given(data=st.data())
def test_equals_torch_layer_on_the_product(path: str, data: st.DataObject) -> None:
    with way_of(path) as (dtype, forward, backward):
        check_against_torch(data, dtype, forward, backward)


def check_against_torch(
    data: st.DataObject, dtype: torch.dtype, forward: Tolerance, close: Tolerance
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1_000)))
    n, d = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    mode = data.draw(st.sampled_from(["sum", "mean", "max"]))
    padding = data.draw(st.none() | st.integers(-n, n - 1))
    by_frequency = mode != "max" and padding is None and data.draw(st.booleans())
    sparse = mode != "max" and not by_frequency and data.draw(st.booleans())
    last = data.draw(st.booleans())
    # Rows of one number that are cut to the same norm are equal: either may be the largest.
    norms = st.none() if mode == "max" and d == 1 else st.none() | st.floats(0.05, 1)
    two = mlet.EmbeddingBag(
        n, d, inner_dim=d + 3, mode=mode, padding_idx=padding, sparse=sparse,
        scale_grad_by_freq=by_frequency, include_last_offset=last, dtype=dtype,
        max_norm=data.draw(norms),
    )  # fmt: skip
    with torch.no_grad():
        two.inner += 0.1
    oracle = two.collapse()
    # torch 2.13's CPU kernel divides by the count of another id in some batches: for (1, 0, 1),
    # (0, 1, 1) it gives id 1 twice its share. The oracle for this option is torch's definition.
    oracle.scale_grad_by_freq = False
    if data.draw(st.booleans()):
        ids, offsets = torch.randint(n, (data.draw(st.integers(1, 4)), 3)), None
    else:
        lengths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
        starts = torch.tensor([0, *lengths]).cumsum(0)
        ids = torch.randint(n, (int(starts[-1]),))
        offsets = starts if last else starts[:-1]
    weights = oracle_weights = None
    if mode == "sum" and not by_frequency and data.draw(st.booleans()):
        weights = torch.randn(ids.shape, dtype=dtype, requires_grad=not sparse)
        oracle_weights = weights.detach().clone().requires_grad_(not sparse)

    out, expected = two(ids, offsets, weights), oracle(ids, offsets, oracle_weights)
    torch.testing.assert_close(out, expected, **forward)

    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    grad = oracle.weight.grad.to_dense()
    if by_frequency:
        grad /= ids.flatten().bincount(minlength=n).clamp(min=1).unsqueeze(1)
    assert two.inner.grad.is_sparse == sparse
    torch.testing.assert_close(two.inner.grad.to_dense(), grad @ two.projection.detach().T, **close)
    torch.testing.assert_close(two.projection.grad, two.inner.detach().T @ grad, **close)
    if weights is not None and weights.requires_grad:
        torch.testing.assert_close(weights.grad, oracle_weights.grad, **close)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_gradcheck(mode: str) -> None:
    torch.manual_seed(0)
    two = mlet.EmbeddingBag(6, 2, mode=mode, inner_dim=5, dtype=torch.float64)
    ids, offsets = torch.tensor([5, 1, 1, 0]), torch.tensor([0, 3, 3])

    def forward(inner: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        factors = {"inner": inner, "projection": projection}
        return functional_call(two, factors, (ids, offsets))

    assert torch.autograd.gradcheck(forward, (two.inner, two.projection))


def test_collapse_keeps_every_option() -> None:
    two = mlet.EmbeddingBag(9, 2, 1.5, 1.0, mode="sum", sparse=True, include_last_offset=True)
    plain = two.collapse()
    assert type(plain) is nn.EmbeddingBag
    for option in ("max_norm", "norm_type", "mode", "sparse", "include_last_offset", "padding_idx"):
        assert getattr(plain, option) == getattr(two, option)


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"mode": "median"}, None, "mode='median' is not one of"),
        ({"mode": "max", "sparse": True}, None, "mode='max' goes with neither"),
        ({"mode": "mean"}, "weights", "per_sample_weights goes with mode='sum' only"),
        ({"mode": "sum"}, "shape", "they must be the same"),
        ({"mode": "sum"}, "offsets", "offsets goes with a 1-D input only"),
        ({"mode": "sum"}, "bare", "needs offsets"),
    ],
)
def test_bad_arguments(options: dict[str, object], call: str | None, message: str) -> None:
    ids = torch.tensor([[1, 2]])
    calls = {
        "weights": (ids, None, torch.ones(1, 2)),
        "shape": (ids, None, torch.ones(2)),
        "offsets": (ids, torch.tensor([0])),
        "bare": (ids[0],),
    }

    def build_and_call() -> None:
        mlet.EmbeddingBag(5, 2, inner_dim=8, **options)(*calls[str(call)])

    with pytest.raises(ValueError, match=message):
        build_and_call()
