"""Fused optimizers of tables that are layers, against torch's own on sparse gradients."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mlet
from mlet.nn import two_layer
from mlet.optim import (
    FusedAdagrad,
    FusedLazyAdam,
    FusedOptimizer,
    FusedRowWiseAdagrad,
    FusedSGD,
    RowWiseAdagrad,
)

REFERENCES: dict[type[FusedOptimizer], Any] = {
    FusedSGD: (torch.optim.SGD, torch.optim.SGD),
    FusedAdagrad: (
        lambda p, lr: torch.optim.Adagrad(p, lr, eps=1e-8),
        lambda p, lr: torch.optim.Adagrad(p, lr, eps=1e-8),
    ),
    FusedRowWiseAdagrad: (
        RowWiseAdagrad,
        lambda p, lr: torch.optim.Adagrad(p, lr, eps=1e-8),
    ),
    FusedLazyAdam: (torch.optim.SparseAdam, torch.optim.Adam),
}


class TwoTowers(nn.Module):
    """Users of one category each, and bags of items."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = mlet.Embedding(3_000, 4, inner_dim=12, sparse=True, **options)
        self.items = mlet.EmbeddingBag(200, 4, inner_dim=12, mode="mean", sparse=True, **options)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.user(users) * self.items(items)

    def layers(self) -> list[two_layer.TwoLayerTable]:
        return [self.user, self.items]


def loss(model: nn.Module, seed: int, scale: float = 1e3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randint(3_000, (40,), generator=generator)
    items = torch.randint(200, (40, 5), generator=generator)
    target = torch.randn(40, 4, generator=generator)
    return scale * (model(users, items) - target).square().mean()


def check_equal(mine: nn.Module, theirs: nn.Module, kind: type[FusedOptimizer]) -> None:
    """To rounding; Adam's steps do not shrink with what rounding leaves of a gradient."""
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        if one.dtype == torch.float64:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        else:
            loose = kind is FusedLazyAdam
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2 if loose else 1e-4)


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def references(model: TwoTowers, kind: type[FusedOptimizer]) -> list[torch.optim.Optimizer]:
    rows, shared = REFERENCES[kind]
    return [
        rows([layer.inner for layer in model.layers()], lr=0.1),
        shared([layer.projection for layer in model.layers()], lr=0.1),
    ]


@pytest.mark.parametrize("kind", REFERENCES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"max_norm": 0.5}], ids=str)
@pytest.mark.parametrize("passes", [1, 2])
@each_dtype
def test_as_torchs_optimizers_on_the_same_gradients(
    kind: Any, options: dict[str, Any], passes: int, dtype: torch.dtype
) -> None:
    mine, theirs = (TwoTowers(dtype=dtype, **options) for _ in range(2))
    optimizer = kind(mine, lr=0.1)
    others = references(theirs, kind)
    scale = 1e5 if kind is FusedLazyAdam else 1e3  # SparseAdam and Adam differ in where ε is
    for step in range(4):
        optimizer.zero_grad()
        theirs.zero_grad()
        for number in range(passes):
            loss(mine, 10 * step + number, scale).backward()
            loss(theirs, 10 * step + number, scale).backward()
        in_rows = all(parameter.grad is None for parameter in mine.parameters())
        assert in_rows == ("max_norm" not in options)
        optimizer.step()
        for other in others:
            other.step()
    check_equal(mine, theirs, kind)


@pytest.mark.parametrize("kind", REFERENCES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("sparse", [True, False])
def test_what_the_engine_did_not_serve_adds_to_what_it_did(kind: Any, sparse: bool) -> None:
    mine, theirs = (TwoTowers(dtype=torch.float64) for _ in range(2))
    for layer in mine.layers():
        layer.sparse = sparse
    optimizer = kind(mine, lr=0.1)
    others = references(theirs, kind)
    scale = 1e5 if kind is FusedLazyAdam else 1e3  # SparseAdam and Adam differ in where ε is
    for step in range(3):
        optimizer.zero_grad()
        theirs.zero_grad()
        for served in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                if not served:
                    patch.setattr(two_layer, "engine_serves", lambda *tensors: False)
                loss(mine, 2 * step + served, scale).backward()
            loss(theirs, 2 * step + served, scale).backward()
        assert all(parameter.grad is not None for parameter in mine.parameters())
        assert all(layer.row_gradients for layer in mine.layers())
        optimizer.step()
        for other in others:
            other.step()
    check_equal(mine, theirs, kind)


def test_a_compiled_model_is_trained_too() -> None:
    torch.compiler.reset()
    mine, theirs = TwoTowers(), TwoTowers()
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    for model, called in ((mine, compiled), (theirs, theirs)):
        optimizer = FusedAdagrad(model, lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            loss(called, step).backward()
            optimizer.step()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_penalty_on_the_factors_is_heeded() -> None:
    model = TwoTowers()
    before = model.user.projection.detach().clone()
    optimizer = FusedSGD(model, lr=0.1)
    (0.5 * model.user.projection.square().sum()).backward()
    optimizer.step()
    torch.testing.assert_close(model.user.projection.detach(), 0.9 * before)


def test_zero_grad_forgets_and_detach_gives_back() -> None:
    model = TwoTowers()
    optimizer = FusedSGD(model, lr=0.1)
    before = copy.deepcopy(model.state_dict())
    loss(model, 0).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    optimizer.detach()
    loss(model, 0).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_copy_of_a_layer_is_not_trained_by_the_originals_optimizer() -> None:
    model = TwoTowers()
    optimizer = FusedAdagrad(model, lr=0.1)
    twin = copy.deepcopy(model)
    loss(twin, 0).backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert not any(layer.row_gradients for layer in model.layers())
    del optimizer


def test_both_go_on_from_where_they_were_saved() -> None:
    def trained(steps: range, model: TwoTowers, optimizer: FusedOptimizer) -> None:
        for step in steps:
            optimizer.zero_grad()
            loss(model, step).backward()
            optimizer.step()

    model = TwoTowers()
    optimizer = FusedLazyAdam(model, lr=0.01)
    trained(range(3), model, optimizer)
    buffer = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), buffer)
    trained(range(3, 6), model, optimizer)
    buffer.seek(0)
    weights, state = torch.load(buffer)
    other = TwoTowers()
    resumed = FusedLazyAdam(other, lr=0.5)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    trained(range(3, 6), other, resumed)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_of_16_bit_layers_are_not_lost(dtype: torch.dtype) -> None:
    """Rounding to nearest would leave each of these steps where it was."""
    torch.manual_seed(0)
    layer = mlet.Embedding(64, 4, inner_dim=32, dtype=dtype)
    with torch.no_grad():
        layer.inner.fill_(1.0)
        layer.projection.fill_(1.0 / 32)
    optimizer = FusedSGD(layer, lr=1e-4)
    ids = torch.arange(64)
    before = layer(ids).float().mean().item()
    for _ in range(60):
        layer(ids).backward(torch.ones(64, 4, dtype=dtype))
        optimizer.step()
        optimizer.zero_grad()
    assert layer(ids).float().mean().item() < before - 0.02


def test_a_converted_model_beside_a_field_embedding() -> None:
    model = mlet.convert(nn.ModuleDict({"words": nn.Embedding(50, 4, sparse=True)}), 12)
    model["fields"] = mlet.nn.FieldEmbedding([mlet.nn.Field("user", 30, 4, 12)])
    optimizer = FusedSGD(model, lr=0.1)
    ids = torch.arange(10)
    (model["words"](ids).sum() + model["fields"](ids.unsqueeze(1)).sum()).backward()
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    changed = [name for name, value in model.state_dict().items() if not value.equal(before[name])]
    assert changed == list(before)


def test_matched_steps_are_as_long_as_those_of_an_ordinary_table() -> None:
    """Root mean square over rows of the first step on the product, as in test_matched_steps.py."""
    torch.manual_seed(0)
    plain = nn.Embedding(5_000, 4)
    layer = mlet.Embedding(5_000, 4, inner_dim=64, init="variance_matched")
    upstream = torch.randn(5_000, 4)
    before = layer.weight.detach().clone()
    start = plain.weight.detach().clone()
    optimizer = FusedAdagrad(layer, lr=0.1, projection_lr=0.0, matched_steps=True)
    layer(torch.arange(5_000)).backward(upstream)
    optimizer.step()
    other = torch.optim.Adagrad(plain.parameters(), lr=0.1)
    plain(torch.arange(5_000)).backward(upstream)
    other.step()
    mine = (layer.weight.detach() - before).square().mean().sqrt()
    theirs = (plain.weight.detach() - start).square().mean().sqrt()
    assert 0.9 < mine / theirs < 1.1


Made = Callable[[], nn.Module]


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(2, 2), lambda: nn.Embedding(5, 2)], ids=["linear", "plain"]
)
def test_what_has_no_rows_to_train_is_refused(make: Made) -> None:
    with pytest.raises(ValueError, match=r"has no FieldEmbedding, mlet\.Embedding or"):
        FusedSGD(make())
