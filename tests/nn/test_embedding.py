"""`mlet.Embedding` against `torch.nn.Embedding` holding the product."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_paths import PATHS, Tolerance, way_of
from torch import nn
from torch.func import functional_call

import mlet


def layer(n: int = 10, d: int = 3, k: int = 7, **options: object) -> mlet.Embedding:
    torch.manual_seed(1)
    return mlet.Embedding(n, d, inner_dim=k, **{"dtype": torch.float64, **options})


def product_gradients(
    two: mlet.Embedding | mlet.EmbeddingBag, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """PAPER: ∂L/∂W2 = G W1ᵀ, ∂L/∂W1 = W2ᵀ G, from the oracle's G = ∂L/∂W."""
    return grad @ two.projection.detach().T, two.inner.detach().T @ grad


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_equals_torch_layer_on_the_product(path: str, data: st.DataObject) -> None:
    with way_of(path) as (dtype, forward, backward):
        check_against_torch(data, dtype, forward, backward)


def check_against_torch(
    data: st.DataObject, dtype: torch.dtype, forward: Tolerance, backward: Tolerance
) -> None:
    n, d = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    padding = data.draw(st.none() | st.integers(-n, n - 1))
    by_frequency = data.draw(st.booleans())
    sparse = not by_frequency and data.draw(st.booleans())
    options = {"padding_idx": padding, "scale_grad_by_freq": by_frequency, "sparse": sparse}
    if data.draw(st.booleans()):
        options |= {"max_norm": data.draw(st.floats(0.01, 2)), "norm_type": 1.5}
    two = layer(n, d, d + 3, dtype=dtype, **options)
    with torch.no_grad():  # a padding row that the user made non-zero gets no update either
        two.inner += 0.1
    oracle = two.collapse()
    shapes = [(5,), (2, 3), (0,), (2, 1, 4)]
    # torch's own sparse gradient fails for an input without dimensions
    shape = data.draw(st.sampled_from(shapes if sparse else [(), *shapes]))
    kind = data.draw(st.sampled_from([torch.int32, torch.int64]))
    ids = torch.randint(n, shape).to(kind)

    out, expected = two(ids), oracle(ids)
    torch.testing.assert_close(out, expected, **forward)

    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    assert two.inner.grad is not None
    assert two.inner.grad.is_sparse == sparse
    assert not two.projection.grad.is_sparse
    # max_norm rescales rows in place: the factors to differentiate by are those after the lookup.
    grad = oracle.weight.grad.to_dense()
    inner, projection = product_gradients(two, grad)
    torch.testing.assert_close(two.inner.grad.to_dense(), inner, **backward)
    torch.testing.assert_close(two.projection.grad, projection, **backward)
    if sparse and padding is not None:
        assert (two.inner.grad.coalesce().indices() != two.padding_idx).all(), "as in torch"


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"sparse": False}])
def test_gradcheck(options: dict[str, object]) -> None:
    two = layer(**options)
    ids = torch.tensor([[1, 2, 2], [9, 0, 1]])

    def forward(inner: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
        # The finite differences of a padding row are not zero, its gradient is: leave it out.
        rows = inner if two.padding_idx is None else inner.index_fill(0, torch.tensor(2), 0.0)
        return functional_call(two, {"inner": rows, "projection": projection}, (ids,))

    assert torch.autograd.gradcheck(forward, (two.inner, two.projection))
    assert torch.autograd.gradgradcheck(forward, (two.inner, two.projection))


def test_sgd_step_moves_every_category_as_derived() -> None:
    """ΔW = −η (G W1ᵀ W1 + W2 W2ᵀ G) + η² G W1ᵀ W2ᵀ G (PAPER, derived)."""
    two, rate = layer(), 0.3
    before, w2, w1 = two.weight.detach(), two.inner.detach().clone(), two.projection.detach()
    w1 = w1.clone()
    ids = torch.tensor([3, 3, 8])
    upstream = torch.randn(3, 3, dtype=torch.float64)
    grad = torch.zeros(10, 3, dtype=torch.float64).index_add_(0, ids, upstream)
    optimizer = torch.optim.SGD(two.parameters(), lr=rate)
    two(ids).backward(upstream)
    optimizer.step()
    change = -rate * (grad @ w1.T @ w1 + w2 @ w2.T @ grad) + rate**2 * grad @ w1.T @ w2.T @ grad
    torch.testing.assert_close(two.weight.detach() - before, change, rtol=1e-10, atol=1e-13)
    assert (change.abs().sum(dim=1) > 0).all(), "cross-category: no row stands still"


def test_collapse_is_the_torch_layer_with_the_same_options_and_outputs() -> None:
    torch.manual_seed(0)
    two = mlet.Embedding(1000, 16, 5, 3.0, 1.0, inner_dim=64, sparse=True).eval()
    plain = two.collapse()
    assert type(plain) is nn.Embedding
    options = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "sparse")
    for option in options:
        assert getattr(plain, option) == getattr(two, option)
    assert not plain.training
    assert plain.weight.shape == (1000, 16)
    ids = torch.arange(1000)
    error = (plain(ids) - two(ids)).abs().max() / two(ids).abs().max()
    assert error <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_collapse_rounds_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    two = mlet.Embedding(300, 4, inner_dim=512, dtype=dtype)
    exact = two.inner.detach().double() @ two.projection.detach().double()
    assert torch.equal(two.collapse().weight, exact.to(dtype))


def test_collapse_of_a_table_larger_than_one_block() -> None:
    two = mlet.Embedding(70_001, 2, inner_dim=5)
    torch.testing.assert_close(two.collapse().weight, two.weight, rtol=1e-5, atol=1e-7)


def test_padding_row_starts_at_zero_and_stays() -> None:
    two = layer(padding_idx=-1)
    assert two.padding_idx == 9
    optimizer = torch.optim.SGD(two.parameters(), lr=1.0)
    for _ in range(3):
        two(torch.tensor([9, 1, 9])).sum().backward()
        optimizer.step()
    assert (two.weight[9] == 0).all()


def test_max_norm_limits_the_product_row_in_place() -> None:
    two = layer(max_norm=0.05)
    untouched = two.inner[0].clone()
    out = two(torch.tensor([4, 7]))
    assert (out.norm(dim=1) <= 0.05 + 1e-9).all()
    assert (two.weight[[4, 7]].norm(dim=1) <= 0.05 + 1e-9).all()
    assert torch.equal(two.inner[0], untouched)


def test_is_a_torch_citizen() -> None:
    two = layer()
    assert list(two.state_dict()) == ["inner", "projection"]
    twin = copy.deepcopy(two)
    twin.load_state_dict(two.state_dict())
    ids = torch.tensor([1, 2])
    assert torch.equal(twin(ids), two(ids))
    assert two.float().half().weight.dtype == torch.float16
    assert str(mlet.Embedding(5, 2, 1, sparse=True, inner_dim=4)) == (
        "Embedding(5, 2, inner_dim=4, padding_idx=1, sparse=True)"
    )
    meta = mlet.Embedding(5, 2, inner_dim=4, device="meta")
    assert meta.inner.is_meta


@pytest.mark.parametrize(
    ("inner", "reason"), [(3, "restricts the table to rank 3"), (4, "too few")]
)
def test_an_inner_dimension_that_cannot_help_warns_with_the_reason(inner: int, reason: str) -> None:
    with pytest.warns(UserWarning, match=reason):
        mlet.Embedding(10, 4, inner_dim=inner)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings must be at least 1, got 0"),
        ({"inner_dim": 0}, "inner_dim must be at least 1, got 0"),
        ({"padding_idx": 10}, "padding_idx=10 is outside the table's 10 categories"),
        ({"init": "xavier"}, "init='xavier' is not one of"),
        ({"sparse": True, "scale_grad_by_freq": True}, "needs dense gradients"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    given_ = {"num_embeddings": 10, "embedding_dim": 2, "inner_dim": 8} | arguments
    with pytest.raises(ValueError, match=message):
        mlet.Embedding(**given_)
