"""What is written to a two-layer layer's weight would be lost, so that it is refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mlet
from mlet.nn.two_layer import TwoLayerTable

WRITES: dict[str, Callable[[TwoLayerTable], object]] = {
    "init": lambda layer: nn.init.normal_(layer.weight),
    "init by fan": lambda layer: nn.init.xavier_uniform_(layer.weight),
    "init of data": lambda layer: nn.init.uniform_(layer.weight.data),
    "init of a row": lambda layer: nn.init.zeros_(layer.weight[1]),
    "as Hugging Face does": lambda layer: layer.weight.data.normal_(mean=0.0, std=0.02),
    "a row of data": lambda layer: layer.weight.data[0].zero_(),
    "data": lambda layer: setattr(layer.weight, "data", torch.zeros(6, 2)),
    "item": lambda layer: layer.weight.__setitem__(0, 1.0),
    "slice of a view": lambda layer: layer.weight.view(-1)[2:4].fill_(1),
    "augmented": lambda layer: layer.weight.data.__iadd__(1),
    "power": lambda layer: layer.weight.data.__ipow__(2),
    "out": lambda layer: torch.mul(torch.ones(6, 2), 2, out=layer.weight.data),
    "copy": lambda layer: layer.weight.data.copy_(torch.zeros(6, 2)),
    "other memory": lambda layer: layer.weight.data.set_(torch.zeros(6, 2)),
    "rows": lambda layer: [nn.init.zeros_(row) for row in layer.weight],
    "parts": lambda layer: torch.split(layer.weight, 2)[0].zero_(),
    "many": lambda layer: torch._foreach_mul_([layer.weight], 2.0),
    "in place": lambda layer: F.relu(layer.weight, inplace=True),
    "two outputs": lambda layer: torch.max(
        torch.ones(6, 2), 0, out=(layer.weight.data[0], torch.zeros(2, dtype=torch.int64))
    ),
    "freeze": lambda layer: layer.weight.requires_grad_(False),
}


@pytest.fixture(params=[mlet.Embedding, mlet.EmbeddingBag])
def layer(request: pytest.FixtureRequest) -> TwoLayerTable:
    made: TwoLayerTable = request.param(6, 2, inner_dim=4)
    return made


@pytest.mark.parametrize("how", WRITES)
def test_writing_is_refused(layer: TwoLayerTable, how: str) -> None:
    with (
        torch.set_grad_enabled(how == "freeze"),
        pytest.raises(RuntimeError, match=r"weight .*set_table.*reset_param"),
    ):
        WRITES[how](layer)


def test_arrays_of_its_memory_are_read_only(layer: TwoLayerTable) -> None:
    for table in (layer.weight.detach(), layer.weight.data[1:], layer.weight.data.cpu()):
        for array in (table.numpy(), np.asarray(table)):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0.0
        table.numpy().copy()[0] = 0.0
    with torch.no_grad():
        (layer.weight * 1).numpy()[0] = 0.0


def test_a_converted_model_says_that_its_initialisation_would_be_lost() -> None:
    model = mlet.convert(nn.Sequential(nn.Embedding(20, 2), nn.Linear(2, 1)), 8)

    def initialise(module: nn.Module) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            weight.data.normal_(0, 0.02)

    with pytest.raises(RuntimeError, match="two-layer table"):
        model.apply(initialise)


def test_reading_is_as_ever(layer: TwoLayerTable) -> None:
    expected = layer.inner.detach() @ layer.projection.detach()
    for computed in (
        layer.weight.detach() * 1, layer.weight.data.clone(), layer.weight * 1,
        F.embedding(torch.arange(6), layer.weight), torch.cat([layer.weight]),
    ):  # fmt: skip
        assert type(computed) is Tensor
        assert torch.equal(computed, expected)
    assert torch.equal(layer.weight[2], expected[2])
    for other in (expected, nn.Parameter(expected)):
        torch.testing.assert_close(other, layer.weight)
        torch.testing.assert_close(layer.weight, other)
    (layer.weight**2).sum().backward()
    assert layer.inner.grad is not None
    assert layer.projection.grad is not None
    buffer = io.BytesIO()
    torch.save([layer.weight.data, layer.weight.detach()], buffer)
    buffer.seek(0)
    for kept in torch.load(buffer, weights_only=True):
        assert type(kept) is Tensor
        assert torch.equal(kept, expected)


def test_another_table_made_of_it_is_written_to(layer: TwoLayerTable) -> None:
    other = nn.Embedding.from_pretrained(layer.weight.detach(), freeze=False)
    other.weight.data.zero_()
    kept = nn.Embedding(6, 2)
    kept.weight.data.copy_(layer.weight)
    kept.weight.data.mul_(2)
    assert torch.equal(kept.weight, 2 * layer.weight)
    assert not other.weight.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda layer: nn.Parameter(layer.weight),
        lambda layer: nn.Parameter(layer.weight.data),
        lambda layer: nn.Parameter(layer.weight[:5]),
        lambda layer: nn.Embedding.from_pretrained(layer.weight, freeze=False).weight,
        lambda layer: nn.Embedding.from_pretrained(layer.weight.detach(), freeze=False).weight,
    ],
)
def test_a_parameter_made_of_it_is_like_any_other(
    layer: TwoLayerTable, make: Callable[[TwoLayerTable], nn.Parameter]
) -> None:
    weight = make(layer)
    other = nn.Embedding(len(weight), 2, _weight=weight.detach().clone())
    model = nn.Embedding(len(weight), 2)
    model.weight = weight
    for module in (model, other):
        for kind in (torch.optim.Adam, torch.optim.SGD):
            optimizer = kind(module.parameters(), lr=0.1)
            module(torch.tensor([1, 3, 1])).square().sum().backward()
            optimizer.step()
    assert torch.equal(model.weight, other.weight)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    copies.append(nn.Embedding(len(weight), 2))
    copies[-1].load_state_dict(torch.load(buffer, weights_only=True))
    nn.init.ones_(model.weight)
    model.weight.data[0].zero_()
    assert model.weight.sum() == 2 * len(weight) - 2
    for twin in copies:
        assert isinstance(twin.weight, nn.Parameter)
        assert torch.equal(twin.weight, other.weight)


def test_another_weight_is_refused(layer: TwoLayerTable) -> None:
    for other in (nn.Parameter(torch.zeros(6, 2)), torch.zeros(6, 2)):
        with pytest.raises(AttributeError, match="set_table"):
            layer.weight = other
