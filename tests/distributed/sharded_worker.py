"""What the processes of the tests of sharded collections do."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from sharded_models import (
    KEYS,
    MIXED,
    NEAR,
    SHARDED,
    batches,
    built,
    check_factors,
    check_like,
    config,
    loss_of,
    outputs,
    reference_optimizer,
    sharded,
    step,
    two_layer_sharder,
)
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint
from torchrec.distributed import DistributedModelParallel, comm_ops
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import mlet
from mlet.errors import ConversionError


def trains_like_one(folder: Path) -> None:
    """Every rule, every sharding; then what is saved, collapsed, counted and refused."""
    size = dist.get_world_size()
    for rule in (
        EmbOptimType.EXACT_SGD,
        EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        EmbOptimType.EXACT_ADAGRAD,
    ):
        model = built()
        reference = copy.deepcopy(model)
        optimizer = reference_optimizer(rule, reference, 0.1)
        model = sharded(model, two_layer_sharder(rule))
        for seed in range(4):
            check_like(model, reference, optimizer, [3 + seed] * size, seed)
        check_factors(model, reference)
    state = {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}
    checkpoint.save(state, checkpoint_id=folder / "checkpoint")
    if dist.get_rank() == 0:
        torch.save(reference.state_dict(), folder / "reference.pt")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    collapses(model, reference, folder)
    counts_bytes()


def collapses(model: Any, reference: Any, folder: Path) -> None:
    joined, (part, rows) = batches([5] * dist.get_world_size(), 9)
    held = {
        name: [shard.tensor.shape for shard in model.module["sparse"].local_shards(name)]
        for name in SHARDED
    }
    assert mlet.collapse(model) is model
    collection = model.module["sparse"]
    assert collection.unsharded_module_type is EmbeddingBagCollection
    for name, shapes in held.items():
        new = collection._model_parallel_name_to_local_shards[name]
        assert [shard.tensor.shape[0] for shard in new] == [shape[0] for shape in shapes]
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder / "collapsed")
    keys = {key.rpartition(".")[2] for key in model.fused_optimizer.state_dict()["state"]}
    assert keys == {"weight"}
    expected = outputs(reference, joined)
    found = outputs(model, part)
    # TorchRec 1.8.0 divides every feature of a collection with a row-wise table of means.
    torch.testing.assert_close(found["c@w"], expected["c@w"][rows], **NEAR)
    torch.testing.assert_close(found["b@v"], expected["b@v"][rows], **NEAR)


def counts_bytes() -> None:
    """What is exchanged of vectors is d/k of what TorchRec exchanges of tables that are k wide."""
    size, k, d = dist.get_world_size(), 16, 4
    _, (part, _) = batches([8] * size, 3)
    for kind, sent in (
        ("table_wise", {"all_to_all_single"}),
        ("row_wise", {"reduce_scatter_tensor", "all_gather_into_tensor"}),
    ):
        counted = []
        for two_layers in (True, False):
            torch.manual_seed(0)
            tables = [config(n, 40, d if two_layers else k, f) for n, f in ("sa", "tb", "uc")]
            model: Any = nn.ModuleDict({"sparse": EmbeddingBagCollection(tables=tables)})
            sharder: Any = AlsoRowWise({"learning_rate": 0.1})
            if two_layers:
                model, sharder = mlet.convert(model, k), two_layer_sharder()
            model = sharded(model, sharder, dict.fromkeys("stu", kind))
            found = outputs(model, part)  # ids have been exchanged once, to begin with
            with counts() as sizes:
                found = outputs(model, part)
                loss_of(found, 0.5).backward()
            counted.append(sizes)
        ours, theirs = counted
        vectors = [sum(one[name] for name in sent) for one in counted]
        assert 0 < vectors[0] * k == vectors[1] * d, (kind, ours, theirs)
        # And, whatever the batch, once every projection.
        assert ours["all_reduce"] - theirs["all_reduce"] == 3 * k * d * 4


class AlsoRowWise(EmbeddingBagCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise"]


@contextmanager
def counts() -> Iterator[Counter[str]]:
    """Bytes of floating point numbers that this process hands to each collective."""
    found: Counter[str] = Counter()
    places = {
        "all_to_all_single": 1,
        "reduce_scatter_tensor": 1,
        "all_gather_into_tensor": 1,
        "all_reduce": 0,
    }
    before = {name: getattr(dist, name) for name in places}

    def counted(name: str, place: int) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            sent = args[place] if len(args) > place else named["input"]
            if sent.is_floating_point():
                found[name] += sent.numel() * sent.element_size()
            return before[name](*args, **named)

        return call

    try:
        for name, place in places.items():
            setattr(dist, name, counted(name, place))
        yield found
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


def resumes(folder: Path) -> None:
    """On as many processes as there are, what another number saved: the numbers of one."""
    reference = built()
    reference.load_state_dict(torch.load(folder / "reference.pt"))
    optimizer = reference_optimizer(EmbOptimType.EXACT_ADAGRAD, reference, 0.1)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
    model = built(device=torch.device("meta"))
    model = sharded(model, two_layer_sharder())
    state = {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}
    assert set(state["model"]) == set(reference.state_dict())
    checkpoint.load(state, checkpoint_id=folder / "checkpoint")
    model.load_state_dict(state["model"])
    model.fused_optimizer.load_state_dict(state["optimizer"])
    check_factors(model, reference)
    size = dist.get_world_size()
    for seed in range(10, 13):
        check_like(model, reference, optimizer, [4] * size, seed)
    check_factors(model, reference)


def two(folder: Path) -> None:
    """Two processes: go on with what four saved; uneven and weighted batches; the end of one."""
    resumes(folder)
    comm_ops.set_use_sync_collectives(True)
    for weighted in (False, True):
        torch.manual_seed(0)
        tables = [config("u", 40, 4, "a", "b"), config("v", 31, 4, "b"), config("w", 30, 3, "c")]
        tables.append(config("y", 33, 8, "a"))
        plain = EmbeddingBagCollection(tables=tables, is_weighted=weighted)
        model: Any = mlet.convert(nn.ModuleDict({"sparse": plain}), 16, exclude="*.y")
        assert type(plain.embedding_bags.get_submodule("y")) is nn.EmbeddingBag
        reference = copy.deepcopy(model)
        optimizer = reference_optimizer(EmbOptimType.EXACT_ADAGRAD, reference, 0.1)
        model = sharded(model, two_layer_sharder(), MIXED)
        for seed in range(3):
            check_like(model, reference, optimizer, [2 + seed, 5], seed, weighted=weighted)
        check_factors(model, reference)
    has_batches_of_its_own(reference, optimizer)
    comm_ops.set_use_sync_collectives(False)
    stays_whole()
    goes_by_torchrecs_pipeline()
    differ()
    ends(model, folder)


def has_batches_of_its_own(reference: Any, optimizer: Any) -> None:
    """Features with batches of different sizes, whose rows are handed out again (VBE)."""
    rank, size = dist.get_rank(), dist.get_world_size()
    made = torch.Generator().manual_seed(5)
    each = []
    for process in range(size):
        rows = [2 + process, 3, 1 + process]
        inverse = torch.stack([torch.randint(0, n, (6,), generator=made) for n in rows])
        lengths = torch.randint(0, 4, (sum(rows),), generator=made)
        count = int(lengths.sum())
        each.append(
            KeyedJaggedTensor(
                keys=KEYS,
                values=torch.randint(0, 30, (count,), generator=made),
                weights=torch.rand(count, generator=made),
                lengths=lengths,
                stride_per_key_per_rank=[[n] for n in rows],
                inverse_indices=(KEYS, inverse),
            )
        )
    optimizer.zero_grad()
    expected = [outputs(reference, batch) for batch in each]
    # A sharded collection keeps what it has found out of its first batch: this is another one.
    fresh = sharded(copy.deepcopy(reference), two_layer_sharder(EmbOptimType.EXACT_SGD), MIXED)
    found = outputs(fresh, each[rank])
    for name, value in found.items():
        torch.testing.assert_close(value, expected[rank][name], **NEAR)
    loss_of(found, 0.5).backward()
    torch.stack([loss_of(one, 0.5) for one in expected]).mean().backward()
    reference_optimizer(EmbOptimType.EXACT_SGD, reference, 0.1).step()
    check_factors(fresh, reference)


class _Scored(nn.Module):
    """A collection with a dense layer, as TorchRec's trainers take it."""

    def __init__(self, sparse: nn.Module) -> None:
        super().__init__()
        self.sparse, self.top = sparse, nn.Linear(11, 1)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        scores = self.top(self.sparse(batch).values()).squeeze(1)
        return scores.square().mean(), scores.detach()


def goes_by_torchrecs_pipeline() -> None:
    """Ids of the next batch are exchanged while this one trains; dense layers by DDP."""
    torch.manual_seed(0)
    tables = [config("u", 40, 4, "a", "b"), config("w", 30, 3, "c")]
    model = mlet.convert(_Scored(EmbeddingBagCollection(tables=tables)), 16)
    reference: Any = copy.deepcopy(model)
    model = sharded(model, two_layer_sharder(), {"u": "table_wise", "w": "row_wise"})
    dense = torch.optim.SGD(model.module.top.parameters(), lr=0.1)
    pipeline = TrainPipelineSparseDist(model, dense, torch.device("cpu"))
    given = [batches([4] * dist.get_world_size(), seed) for seed in range(4)]
    feed = iter([part for _, (part, _) in given])
    optimizers = [
        torch.optim.Adagrad(reference.sparse.parameters(), lr=0.1, eps=1e-8),
        torch.optim.SGD(reference.top.parameters(), lr=0.1),
    ]
    for joined, (_, rows) in given:
        loss, expected = reference(joined)
        torch.testing.assert_close(pipeline.progress(feed), expected[rows], **NEAR)
        reference.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def differ() -> None:
    """Processes whose models are not the same: said by all, not trained to nonsense."""
    torch.manual_seed(dist.get_rank())
    plain = EmbeddingBagCollection(tables=[config("u", 40, 4, "a")])
    model = mlet.convert(nn.ModuleDict({"sparse": plain}), 16)
    with pytest.raises(ConversionError, match="'u': the processes hold different projections"):
        sharded(model, two_layer_sharder(), {"u": "row_wise"})


def stays_whole() -> None:
    """A collection that pools nothing is no sharder's: it is whole everywhere, as dense layers."""
    torch.manual_seed(0)
    tables = [
        EmbeddingConfig(name="t", num_embeddings=30, embedding_dim=4, feature_names=["a", "b"])
    ]
    model: Any = mlet.convert(nn.Sequential(EmbeddingCollection(tables=tables)), 8)
    reference: Any = copy.deepcopy(model)
    whole = DistributedModelParallel(
        model, device=torch.device("cpu"), sharders=[two_layer_sharder()]
    )
    size = dist.get_world_size()
    joined, (part, _) = batches([4] * size, 1)
    (whole(part)["a"].values() ** 2).sum().backward()
    (reference(joined)["a"].values() ** 2).sum().backward()
    (ours,), (theirs,) = (m[0].tables.stacks() for m in (whole.module, reference))
    torch.testing.assert_close(ours.projection.grad * size, theirs.projection.grad, **NEAR)


def ends(model: Any, folder: Path) -> None:
    """The second process is killed in the midst of training; the first says so."""
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder / "last")
    if dist.get_rank() == 1:
        step(model, [3, 3], 1, weighted=True)
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    try:
        for seed in range(1, 100):
            step(model, [3, 3], seed, weighted=True)
        raise AssertionError("trained on, alone")
    except RuntimeError as error:
        text = f"{time.monotonic() - began}\n{error}"
    (folder / "ended.txt").write_text(text)
