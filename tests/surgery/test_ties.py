"""Weights that several modules share, converted together: all train the same two factors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mlet
from mlet.errors import ConversionError
from mlet.nn.tied_linear import TiedLinear
from mlet.optim import fused


class Language(nn.Module):
    """Two word tables and an output layer with one weight."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, 4, padding_idx=0)
        self.context = nn.Embedding(40, 4)
        self.out = nn.Linear(4, 40, bias=bias)
        self.context.weight = self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.words(ids) + self.context(ids.flip(-1)))


IDS = torch.tensor([[3, 0, 5], [39, 5, 1]])


def step(model: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    optimizer = make(model)
    nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten()).backward()
    optimizer.step()


@pytest.mark.parametrize("bias", [True, False])
def test_tied_weights_are_converted_trained_and_collapsed_together(bias: bool) -> None:
    plain = Language(bias=bias)
    expected = plain(IDS)
    model = mlet.convert(copy.deepcopy(plain), 12, tied="together")
    torch.testing.assert_close(model(IDS), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(model.out, TiedLinear)
    assert model.out.inner is model.words.inner is model.context.inner
    assert model.out.projection is model.words.projection is model.context.projection
    names = [name for name, _ in model.named_parameters()]
    assert names == ["words.inner", "words.projection"] + ["out.bias"] * bias

    def sgd(of: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(of.parameters(), lr=0.5)

    twin = copy.deepcopy(model)
    step(model, sgd)
    step(twin, lambda of: fused(torch.optim.SGD, of, lr=0.5, matched=False))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

    trained = model(IDS).detach()
    state = mlet.collapse_state_dict(model.state_dict())
    collapsed = mlet.collapse(model)
    assert type(collapsed.out) is nn.Linear
    assert collapsed.out.weight is collapsed.words.weight is collapsed.context.weight
    torch.testing.assert_close(collapsed(IDS), trained, rtol=1e-5, atol=1e-6)
    for each in (state, collapsed.state_dict()):
        plain.load_state_dict(each, strict=True)
        torch.testing.assert_close(plain(IDS), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 4_000])
def test_scores_are_the_same_through_either_order_of_products(rows: int) -> None:
    model = mlet.convert(Language(), 12, tied="together")
    inputs = torch.randn(rows, 4, requires_grad=True)
    weight = (model.words.inner @ model.words.projection).detach()
    got = model.out(inputs)
    torch.testing.assert_close(got, inputs @ weight.T + model.out.bias, rtol=1e-4, atol=1e-5)
    with pytest.raises(AttributeError, match="computed from inner and projection"):
        model.out.weight = nn.Parameter(weight)


def test_ties_are_refused_unless_asked_for_and_where_they_cannot_be_kept() -> None:
    with pytest.raises(ConversionError, match=r"tied to that of.*tied='together' lets both read"):
        mlet.convert(Language(), 12)
    with pytest.raises(ConversionError, match=r"tied='yes' is not one of"):
        mlet.convert(Language(), 12, tied="yes")  # type: ignore[arg-type]
    other = Language()
    other.out = nn.Bilinear(2, 2, 1)
    other.mixer = nn.Module()
    other.mixer.weight = other.words.weight
    with pytest.raises(ConversionError, match="'mixer', a Module; together can be converted"):
        mlet.convert(other, 12, tied="together")
    shared = nn.ModuleDict({"e": nn.Embedding(9, 2), "head": nn.Linear(2, 9)})
    shared["head"].weight.data = shared["e"].weight.data
    with pytest.raises(ConversionError, match="shares its memory, but not as its own weight"):
        mlet.convert(shared, 8, tied="together")
    with pytest.raises(ConversionError, match="'words': its weight is tied to that of 'context'"):
        mlet.convert(Language(), 12, exclude="context", tied="together")
