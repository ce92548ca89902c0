"""Fused optimizers train a `FieldEmbedding` in a model under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlet.nn import Field, FieldEmbedding
from mlet.optim import FusedAdagrad, fused

IDS = torch.tensor([[0, 3, 1, 3], [5, 3, 0, 1], [5, 2, 1, 2], [0, 0, 2, 5]])
CLICKS = torch.tensor([1.0, 0.0, 1.0, 0.0])

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Model(nn.Module):
    """Two two-layer tables, one of two fields, and an ordinary one under a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        fields = [Field("user", 9, 4, inner_dim=8), Field("item", 6, 4, inner_dim=8)]
        last = Field("last", 6, 4, inner_dim=8, shares="item")
        self.fields = FieldEmbedding([*fields, Field("hour", 3, 4), last])
        self.head = nn.Linear(16, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.fields(ids).flatten(1)).squeeze(1)


def trained(model: Model, called: Any, make: Make) -> dict[str, Tensor]:
    optimizer = make(model)
    for _ in range(3):
        optimizer.zero_grad()
        (called(IDS) - CLICKS).square().mean().backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("kind", ["whole model", "tables alone"])
def test_a_compiled_model_is_trained_as_any_other(kind: str) -> None:
    make: Make = {
        "whole model": lambda model: fused(torch.optim.SGD, model, lr=0.1),
        "tables alone": lambda model: FusedAdagrad(model, lr=0.1),
    }[kind]
    torch.compiler.reset()
    model, other = Model(), Model()
    found = trained(model, torch.compile(model, backend="aot_eager"), make)
    for name, value in trained(other, other, make).items():
        torch.testing.assert_close(found[name], value, msg=name)
        if name.startswith("fields"):
            assert not torch.equal(value, Model().state_dict()[name]), name


def test_a_graph_in_one_part_is_refused_with_the_reason() -> None:
    torch.compiler.reset()
    model = Model()
    optimizer = fused(torch.optim.SGD, model, lr=0.1)
    assert optimizer.param_groups
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="leave fullgraph=True out"):
        compiled(IDS)
    torch.compiler.reset()
    plain = Model()
    whole = torch.compile(plain, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(IDS), plain(IDS))
