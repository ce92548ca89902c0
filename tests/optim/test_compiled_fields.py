"""Fused optimizers train a `FieldEmbedding` in a model under ``torch.compile``."""

from __future__ import annotations

import copy
import gc
import shutil
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlet.engine import FactoredGradient
from mlet.nn import Field, FieldEmbedding, in_the_graph
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


def train(model: Model, called: Any, optimizer: torch.optim.Optimizer) -> None:
    """Three steps, of two batches each, clipped; a batch between them is not learned from."""
    for step in range(3):
        optimizer.zero_grad()
        for ids in (IDS, IDS.roll(1 + step, 0)):
            (called(ids) - CLICKS).square().mean().backward()
        called(IDS.flip(0))
        if any(parameter.grad is not None for parameter in model.fields.parameters()):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


MAKES: dict[str, Make] = {
    "whole model": lambda model: fused(torch.optim.SGD, model, lr=0.1),
    "tables alone": lambda model: FusedAdagrad(model, lr=0.1),
}


@pytest.mark.parametrize(
    ("kind", "backend"),
    [*product(MAKES, ["eager", "aot_eager"]), ("whole model", "inductor")],
)
def test_a_graph_in_one_part_is_trained_as_any_model(kind: str, backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor takes a C++ compiler, and there is no g++")
    torch.compiler.reset()
    model, other = Model(), Model()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    optimizer = MAKES[kind](model)
    train(model, compiled, optimizer)
    train(other, other, MAKES[kind](other))
    found = model.state_dict()
    for name, value in other.state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)
        if name.startswith("fields"):
            assert not torch.equal(value, Model().state_dict()[name]), name
    with pytest.raises(IndexError, match="field 'user': id 9 is outside its table of 9"):
        compiled(IDS + 4)
    # Nothing is kept of batches that are over.
    gc.collect()
    assert not in_the_graph._kept


class Bags(nn.Module):
    """One table of bags, one of single categories, and their bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        bag = Field("words", 9, 4, inner_dim=8, multi_valued=True, pooling="mean")
        self.fields = FieldEmbedding([Field("user", 6, 4, inner_dim=8), bag], table_bias=True)

    def forward(self, ids: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        return self.fields(ids, {"words": (values, offsets)})


def test_bags_and_biases_are_in_the_graph() -> None:
    torch.compiler.reset()
    model, other = Bags(), Bags()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    seen: list[Tensor] = []
    for called, of in ((compiled, model), (other, other)):
        optimizer = fused(torch.optim.Adagrad, of, lr=0.1)
        of.fields.tables[0].inner.register_hook(lambda grad: seen.append(grad) or grad * 2)
        for rows in (3, 4, 5):
            optimizer.zero_grad()
            offsets = torch.arange(rows + 1) * 2
            offsets[1] = 0  # an empty bag
            vectors = called(IDS[:1, :1].repeat(rows, 1), torch.arange(2 * rows) % 9, offsets)
            (vectors * torch.arange(4.0)).square().sum().backward()
            optimizer.step()
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)
    assert [type(grad) for grad in seen] == [FactoredGradient] * 6


def test_a_copy_has_its_own_gradients() -> None:
    torch.compiler.reset()
    model = Model()
    made = [fused(torch.optim.SGD, model, lr=0.1)]
    twin = copy.deepcopy(model)
    made.append(fused(torch.optim.SGD, twin, lr=0.1))
    torch.compile(twin, backend="eager", fullgraph=True)(IDS).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in twin.parameters())


def test_a_program_that_is_exported_knows_nothing_of_the_optimizer() -> None:
    model = Model()
    expected = model(IDS)
    optimizer = fused(torch.optim.SGD, model, lr=0.1)
    program = torch.export.export(model, (IDS,))
    assert not [n for n in program.graph.nodes if "mlet" in str(n.target)]
    torch.testing.assert_close(program.module()(IDS), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes, which are the same
        torch.testing.assert_close(torch.jit.trace(model, (IDS,))(IDS), expected)
    assert optimizer.param_groups
