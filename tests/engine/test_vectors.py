"""Where single layers look up through the engine, and what they keep for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import mlet
from mlet.engine import engine_serves
from mlet.nn import two_layer

IDS = torch.tensor([[1, 2, 2], [0, 5, 1]])


def made(**options: object) -> mlet.Embedding:
    torch.manual_seed(0)
    return mlet.Embedding(10, 3, inner_dim=8, **options)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the rule said, in order."""
    found: list[bool] = []

    def noted(*tensors: Tensor) -> bool:
        found.append(engine_serves(*tensors))
        return found[-1]

    monkeypatch.setattr(two_layer, "engine_serves", noted)
    return found


def under_vmap(layer: mlet.Embedding) -> None:
    torch.func.vmap(layer)(IDS)


def under_grad(layer: mlet.Embedding) -> None:
    torch.func.grad(lambda inner: (inner @ layer.projection)[IDS].sum() + layer(IDS).sum())(
        layer.inner
    )


def forwards(layer: mlet.Embedding) -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(layer.inner.detach(), torch.ones(10, 8))
        torch.func.functional_call(layer, {"inner": dual}, (IDS,))


def fake(layer: mlet.Embedding) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer(IDS)


def counted(layer: mlet.Embedding) -> None:
    with FlopCounterMode(display=False) as counter:
        layer(IDS)
    assert counter.get_total_flops() > 0, "its product is one of the operations that are counted"


def traced(layer: mlet.Embedding) -> None:
    torch.jit.trace(layer, (IDS,))


def in_complex_numbers(layer: mlet.Embedding) -> None:
    with torch.no_grad():  # torch has no gradients of complex lookups
        layer.to(torch.complex64)(IDS)


def a_subclass(layer: mlet.Embedding) -> None:
    class Mine(Tensor):
        pass

    layer(IDS.as_subclass(Mine))


@pytest.mark.parametrize(
    "how",
    [under_vmap, under_grad, forwards, fake, counted, traced, in_complex_numbers, a_subclass],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:Complex modules")
def test_what_replaces_or_transforms_operations_gets_torchs(
    how: Callable[[mlet.Embedding], None], answers: list[bool]
) -> None:
    how(made())
    assert answers
    assert not answers[0]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("context", ["none", "no_grad", "inference", "autocast", "device"])
def test_eager_lookups_are_the_engines(
    dtype: torch.dtype, context: str, answers: list[bool]
) -> None:
    layer = made(dtype=dtype)
    contexts = {
        "none": nullcontext(),
        "no_grad": torch.no_grad(),
        "inference": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "device": torch.device("cpu"),
    }
    with contexts[context]:
        out = layer(IDS)
    assert answers == [True]
    assert out.dtype == dtype
    near = {} if dtype in (torch.float32, torch.float64) else {"rtol": 2e-2, "atol": 1e-3}
    torch.testing.assert_close(out, layer.weight[IDS], **near)


def test_second_derivatives_of_what_the_engine_looked_up(answers: list[bool]) -> None:
    layer = made(dtype=torch.float64, padding_idx=2)
    grads = {}
    for served in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not served:
                patch.setattr(two_layer, "engine_serves", lambda *tensors: False)
            out = layer(IDS).square().sum()
            first = torch.autograd.grad(out, (layer.inner, layer.projection), create_graph=True)
            total = sum(part.square().sum() for part in first)
            grads[served] = torch.autograd.grad(total, (layer.inner, layer.projection))
    assert answers == [True]
    for mine, torchs in zip(grads[True], grads[False], strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mlet.Embedding(100_000, 4, inner_dim=64),
        lambda: mlet.EmbeddingBag(100_000, 4, inner_dim=64, mode="sum"),
        lambda: mlet.EmbeddingBag(100_000, 4, inner_dim=64, mode="max"),
    ],
)
def test_nothing_k_wide_is_kept_for_every_lookup(make: Callable[[], nn.Module]) -> None:
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    layer = make()
    ids = torch.randint(7, (500, 10))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(ids)
    assert max(tensor.numel() for tensor in kept if tensor.dtype.is_floating_point) <= 7 * 64


def test_rows_changed_between_a_lookup_and_its_backward_pass() -> None:
    """As of torch's own layer, whose lookup keeps no values: the gradient is of what was read."""
    layer = made()
    upstream = torch.randn(2, 3, 3)
    out = layer(IDS)
    expected = torch.autograd.grad(out, layer.projection, upstream, retain_graph=True)[0]
    with torch.no_grad():
        layer.inner.add_(1.0)
    torch.testing.assert_close(torch.autograd.grad(out, layer.projection, upstream)[0], expected)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_an_id_outside_is_named(wrong: int) -> None:
    for layer in (made(), mlet.EmbeddingBag(10, 3, inner_dim=8)):
        with pytest.raises(IndexError, match=rf"^id {wrong} is outside its table of 10 categories"):
            layer(torch.tensor([[1, wrong]]))


def test_frozen_factors_get_no_gradient() -> None:
    layer = made()
    layer.projection.requires_grad_(False)
    layer(IDS).sum().backward()
    assert layer.projection.grad is None
    layer.inner.requires_grad_(False)
    assert not layer(IDS).requires_grad
    layer.projection.requires_grad_(True)
    out = layer(IDS).square().sum()
    (first,) = torch.autograd.grad(out, layer.projection, create_graph=True)
    first.square().sum().backward()
    assert layer.projection.grad is not None


def test_what_comes_to_the_padding_row_is_nothing_even_if_infinite() -> None:
    layer = made(padding_idx=2)
    upstream = torch.ones(2, 3, 3)
    upstream[IDS == 2] = float("inf")
    layer(IDS).backward(upstream)
    assert layer.inner.grad is not None
    assert layer.inner.grad.isfinite().all()
    assert (layer.inner.grad[2] == 0).all()
