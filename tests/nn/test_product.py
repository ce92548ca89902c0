"""What is written to a two-layer layer's weight would be lost, so that it is refused."""

from __future__ import annotations

import io
from collections.abc import Callable

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
    "freeze": lambda layer: layer.weight.requires_grad_(False),
}


@pytest.fixture(params=[mlet.Embedding, mlet.EmbeddingBag])
def layer(request: pytest.FixtureRequest) -> TwoLayerTable:
    made: TwoLayerTable = request.param(6, 2, inner_dim=4)
    return made


@pytest.mark.parametrize("how", WRITES)
def test_writing_is_refused(layer: TwoLayerTable, how: str) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"weight .*set_table.*reset_param"):
        WRITES[how](layer)


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
        layer.weight.detach(), layer.weight.data.clone(), layer.weight * 1,
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
