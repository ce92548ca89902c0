"""Training TorchRec's collections whose tables are looked up together: what layers by themselves,
as `convert` made of them at first, come to."""

from __future__ import annotations

import copy
import importlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import mlet
from mlet.engine import FactoredGradient

pytest.importorskip("torchrec", reason="make test installs the extra 'clients'")
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

NEAR = {"rtol": 1e-4, "atol": 1e-5}


class Clicks(nn.Module):
    """Pooled, weighted and unpooled features, and a layer above."""

    def __init__(self) -> None:
        super().__init__()
        pooled = [
            EmbeddingBagConfig(name="u", num_embeddings=30, embedding_dim=4, feature_names=["a"]),
            EmbeddingBagConfig(
                name="v",
                num_embeddings=20,
                embedding_dim=4,
                feature_names=["b"],
                pooling=PoolingType.MEAN,
            ),
        ]
        other = [
            EmbeddingBagConfig(
                name="w", num_embeddings=25, embedding_dim=2, feature_names=["b", "c"]
            )
        ]
        words = [EmbeddingConfig(name="x", num_embeddings=9, embedding_dim=4, feature_names=["c"])]
        self.pooled = EmbeddingBagCollection(pooled)
        self.weighted = EmbeddingBagCollection(other, is_weighted=True)
        self.words = EmbeddingCollection(words)
        self.top = nn.Linear(12, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        tables = torch.cat([self.pooled(features).values(), self.weighted(features).values()], 1)
        words = self.words(features)["c"].values().square().sum()
        return self.top(tables).squeeze(1) + words / len(tables)


def batch_of(step: int, low: int = 0, high: int = 12) -> KeyedJaggedTensor:
    """Some rows of a batch of 12."""
    made = torch.Generator().manual_seed(step)
    values, lengths, weights = [], [], []
    for _ in range(3):
        own = torch.randint(4, (12,), generator=made)
        ids, by = torch.randint(9, (12, 3), generator=made), torch.rand(12, 3, generator=made)
        kept = torch.arange(3) < own[low:high].unsqueeze(1)
        values.append(ids[low:high][kept])
        weights.append(by[low:high][kept])
        lengths.append(own[low:high])
    return KeyedJaggedTensor(
        ["a", "b", "c"], torch.cat(values), torch.cat(weights), torch.cat(lengths)
    )


def alone(model: nn.Module) -> nn.Module:
    """Converted one table at a time."""
    module = importlib.import_module("mlet.surgery.convert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "collections_of", lambda *_: [])
        return mlet.convert(model, 12)


def steps(model: nn.Module, optimizer: Any, count: int = 3) -> list[float]:
    """The norms of the gradients of training steps."""
    norms = []
    for step in range(count):
        optimizer.zero_grad()
        model(batch_of(step)).square().sum().backward()
        norms.append(float(mlet.optim.clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
    return norms


def check_equal(one: nn.Module, other: nn.Module) -> None:
    state, expected = one.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, msg=lambda m, n=name: f"{n}: {m}", **NEAR)


@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "Adam", "fused SGD", "fused Adam", "sparse"])
def test_training_is_that_of_layers_by_themselves(kind: str) -> None:
    torch.manual_seed(0)
    plain = Clicks()
    if kind == "sparse":
        for layer in plain.modules():
            if isinstance(layer, nn.EmbeddingBag | nn.Embedding):
                layer.sparse = True
    before, model = alone(copy.deepcopy(plain)), mlet.convert(copy.deepcopy(plain), 12)
    model.load_state_dict(before.state_dict())  # as one that was saved before
    assert len(mlet.summary(model).tables) == 4
    norms = []
    for each in (before, model):
        name = kind.removeprefix("fused ")
        chosen = torch.optim.SGD if kind == "sparse" else getattr(torch.optim, name)
        if kind.startswith("fused"):
            optimizer = mlet.optim.fused(chosen, each, lr=0.05)
        else:
            optimizer = chosen(each.parameters(), lr=0.05)
        mlet.optim.check_optimizers(each, optimizer)
        if kind == "sparse":
            each(batch_of(0)).square().sum().backward()
            optimizer.step()
        else:
            norms.append(steps(each, optimizer))
        grads = [parameter.grad for parameter in each.parameters()]
        found = sum(isinstance(grad, FactoredGradient) for grad in grads)
        assert (found > 0) == kind.startswith("fused")
        assert any(grad.is_sparse for grad in grads) == (kind == "sparse")
    torch.testing.assert_close(*(norms or [0, 0]), **NEAR)
    check_equal(model, before)
    tables = [name for name, _ in model.named_parameters() if name.endswith("inner")]
    assert len(tables) == 3, "tables of equal shape are in one matrix"
    plain.load_state_dict(mlet.collapse(model).state_dict(), strict=True)


def test_tables_grow() -> None:
    torch.manual_seed(0)
    model = mlet.convert(Clicks(), 12)
    optimizer = mlet.optim.fused(torch.optim.Adam, model, lr=0.05)
    steps(model, optimizer)
    expected = model(batch_of(0))
    sizes = {"pooled.embedding_bags.v": 50, "words.embeddings.x": 11}
    mlet.grow(model, sizes, optimizer=optimizer)
    torch.testing.assert_close(model(batch_of(0)), expected)
    steps(model, optimizer)
    assert [c.num_embeddings for c in model.pooled.embedding_bag_configs()] == [30, 50]
    assert [c.num_embeddings for c in model.words.embedding_configs()] == [11]
    expected = model(batch_of(0))
    mlet.collapse(model)
    assert model.pooled.embedding_bags["v"].num_embeddings == 50
    assert [c.num_embeddings for c in model.pooled.embedding_bag_configs()] == [30, 50]
    torch.testing.assert_close(model(batch_of(0)), expected, **NEAR)


def made() -> tuple[nn.Module, Any]:
    model = mlet.convert(Clicks(), 12)
    return model, mlet.optim.fused(torch.optim.Adam, model, lr=0.05)


def exchange(model: nn.Module, optimizer: Any, rank: int, world: int) -> None:
    """Steps of this process' rows, an uneven share of the batch."""
    for step, cut in enumerate((5, 11, 1)):
        low, high = [(0, cut), (cut, 12)][rank] if world > 1 else (0, 12)
        optimizer.zero_grad()
        (model(batch_of(step, low, high)).sum() * world).backward()
        mlet.optim.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=120))
    distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    torch.manual_seed(rank)
    model, optimizer = made()
    exchange(DistributedDataParallel(model), optimizer, rank, 2)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    store.set(f"rank {rank} is done", "")
    store.wait([f"rank {other} is done" for other in range(2)])
    os._exit(0)  # as in tests/nn/test_torch_citizens.py


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(worker, args=(store.port, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    model, optimizer = made()
    exchange(model, optimizer, 0, 1)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=0)
        torch.testing.assert_close(states[0][name], value, **NEAR)
