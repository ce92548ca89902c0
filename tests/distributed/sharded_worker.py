"""What the processes of the tests of sharded collections do."""

from __future__ import annotations

import copy
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from sequence_worker import (
    sequence_config,
    sequence_sharder,
    sequences_have_batches_of_their_own,
    sequences_resume,
    sequences_train_like_one,
)
from sharded_models import (
    MEAN,
    MIXED,
    MIXED_SHARES,
    NEAR,
    ONE_MACHINE,
    SHARDED,
    WHOLE_ROWS,
    batches,
    batches_of_their_own,
    built,
    check_factors,
    check_like,
    config,
    counts,
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
        by_rows = rule == EmbOptimType.EXACT_ROWWISE_ADAGRAD
        model = sharded(model, two_layer_sharder(rule), WHOLE_ROWS if by_rows else SHARDED)
        for seed in range(4):
            check_like(model, reference, optimizer, [3 + seed] * size, seed)
        check_factors(model, reference)
    state = {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}
    checkpoint.save(state, checkpoint_id=folder / "checkpoint")
    if dist.get_rank() == 0:
        torch.save(reference.state_dict(), folder / "reference.pt")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    collapses(model, reference, folder)
    works_in_grids()
    counts_bytes()
    sequences_train_like_one(folder)


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
        if name in WHOLE_ROWS and WHOLE_ROWS[name] == SHARDED[name]:
            assert [shard.tensor.shape[0] for shard in new] == [shape[0] for shape in shapes]
        elif name in ("p", "h"):  # no process has all rows of what many had columns of
            assert [len(shard.tensor) <= 9 for shard in new] == [True]
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder / "collapsed")
    keys = {key.rpartition(".")[2] for key in model.fused_optimizer.state_dict()["state"]}
    assert keys == {"weight"}
    expected = outputs(reference, joined)
    found = outputs(model, part)
    # TorchRec 1.8.0 divides every feature of a collection with a row-wise table of means.
    torch.testing.assert_close(found["c@w"], expected["c@w"][rows], **NEAR)
    torch.testing.assert_close(found["b@v"], expected["b@v"][rows], **NEAR)


def works_in_grids() -> None:
    """Uneven batches; and TorchRec takes no means in a grid: an ordinary table of means is taken
    out when others are collapsed."""
    torch.manual_seed(0)
    size = dist.get_world_size()
    tables = [config("g", 31, 8, "a", pooling=MEAN), config("p", 30, 4, "b", pooling=MEAN)]
    tables.append(config("h", 33, 20, "c"))
    plain = EmbeddingBagCollection(tables=tables)
    model = mlet.convert(nn.ModuleDict({"sparse": plain}), 32, exclude="*.g")
    reference: Any = copy.deepcopy(model)
    kinds = {"g": "grid_shard", "p": "column_wise", "h": "grid_shard"}
    sgd, shares = two_layer_sharder(EmbOptimType.EXACT_SGD), {"g": 4, "p": 8, "h": 16}
    model = sharded(model, sgd, kinds, shares)
    optimizer = reference_optimizer(EmbOptimType.EXACT_SGD, reference, 0.1)
    comm_ops.set_use_sync_collectives(True)
    for seed in range(2):
        check_like(model, reference, optimizer, [1 + (seed + i) % 4 for i in range(size)], seed)
    comm_ops.set_use_sync_collectives(False)
    check_factors(model, reference)
    joined, (part, rows) = batches([3] * size, 4)
    expected = outputs(reference, joined)
    for name, value in outputs(mlet.collapse(model), part).items():
        torch.testing.assert_close(value, expected[name][rows], **NEAR)
    fresh = sharded(copy.deepcopy(reference), sgd, kinds, shares)
    with pytest.raises(ConversionError, match=r"\(VBE\) cannot be exchanged in a grid"):
        outputs(fresh, batches_of_their_own()[dist.get_rank()])


#: What crosses the network of vectors, there and back.
ALL_TO_ALL = {"all_to_all_single"}
SCATTER = {"reduce_scatter_tensor", "all_gather_into_tensor"}


def counts_bytes() -> None:
    """What is exchanged of vectors is d/k of what TorchRec exchanges of tables that are k wide; by
    columns, d-wide sums of as many as there are shares, or, where those are more, all k."""
    size, k = dist.get_world_size(), 32
    _, (part, _) = batches([8] * size, 3)
    for kind, sent, d, share, width in (
        ("table_wise", ALL_TO_ALL, 4, None, 4),
        ("row_wise", SCATTER, 4, None, 4),
        ("table_row_wise", ALL_TO_ALL | SCATTER, 4, None, 4),
        ("column_wise", ALL_TO_ALL, 4, 8, 4 * 4),
        ("column_wise", ALL_TO_ALL, 8, 8, 4 * 8),
        ("column_wise", ALL_TO_ALL, 12, 8, 32),
        ("grid_shard", ALL_TO_ALL | SCATTER, 4, 16, 2 * 4),
        ("grid_shard", ALL_TO_ALL | SCATTER, 20, 16, 32),
    ):
        counted = []
        for two_layers in (True, False):
            torch.manual_seed(0)
            tables = [config(n, 40, d if two_layers else k, f) for n, f in ("sa", "tb", "uc")]
            model: Any = nn.ModuleDict({"sparse": EmbeddingBagCollection(tables=tables)})
            sharder: Any = AlsoRowWise({"learning_rate": 0.1})
            if two_layers:
                model, sharder = mlet.convert(model, k), two_layer_sharder()
            parts = {} if share is None else dict.fromkeys("stu", share)
            model = sharded(model, sharder, dict.fromkeys("stu", kind), parts)
            found = outputs(model, part)  # ids have been exchanged once, to begin with
            with counts() as sizes:
                found = outputs(model, part)
                loss_of(found, 0.5).backward()
            counted.append(sizes)
        ours, theirs = counted
        for name in sent:
            assert 0 < ours[name] * k == theirs[name] * width, (kind, d, ours, theirs)
        assert {name for name, count in ours.items() if count} == sent | {"all_reduce"}
        # And, whatever the batch, once every projection.
        assert ours["all_reduce"] - theirs["all_reduce"] == 3 * k * d * 4


class AlsoRowWise(EmbeddingBagCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise", "table_row_wise", "column_wise", "grid_shard"]


def resumes(folder: Path) -> None:
    """On as many processes as there are, what another number saved: the numbers of one."""
    reference = built()
    reference.load_state_dict(torch.load(folder / "reference.pt"))
    optimizer = reference_optimizer(EmbOptimType.EXACT_ADAGRAD, reference, 0.1)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
    model = built(device=torch.device("meta"))
    model = sharded(model, two_layer_sharder(), ONE_MACHINE)
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
    sequences_resume(folder)


def two(folder: Path) -> None:
    """Two processes: go on with what four saved; uneven and weighted batches; the end of one."""
    resumes(folder)
    comm_ops.set_use_sync_collectives(True)
    for weighted in (False, True):
        torch.manual_seed(0)
        tables = [config("u", 40, 4, "a", "b"), config("v", 31, 4, "b"), config("w", 30, 3, "c")]
        tables += [config("y", 33, 8, "a"), config("z", 37, 8, "c")]
        tables += [config("p", 35, 4, "b", "c"), config("q", 36, 12, "a")]
        tables.append(config("x", 34, 4, "a"))
        plain = EmbeddingBagCollection(tables=tables, is_weighted=weighted)
        model: Any = mlet.convert(nn.ModuleDict({"sparse": plain}), 16, exclude="*.[yz]")
        assert type(plain.embedding_bags.get_submodule("y")) is nn.EmbeddingBag
        reference = copy.deepcopy(model)
        optimizer = reference_optimizer(EmbOptimType.EXACT_ADAGRAD, reference, 0.1)
        model = sharded(model, two_layer_sharder(), MIXED, MIXED_SHARES)
        for seed in range(3):
            check_like(model, reference, optimizer, [2 + seed, 5], seed, weighted=weighted)
        check_factors(model, reference)
    has_batches_of_its_own(reference, optimizer)
    comm_ops.set_use_sync_collectives(False)
    sequences_have_batches_of_their_own()
    stays_whole()
    goes_by_torchrecs_pipeline()
    differ()
    ends(model, folder)


def has_batches_of_its_own(reference: Any, optimizer: Any) -> None:
    """Features with batches of different sizes, whose rows are handed out again (VBE)."""
    rank, each = dist.get_rank(), batches_of_their_own()
    optimizer.zero_grad()
    expected = [outputs(reference, batch) for batch in each]
    # A sharded collection keeps what it has found out of its first batch: this is another one.
    sgd = two_layer_sharder(EmbOptimType.EXACT_SGD)
    fresh = sharded(copy.deepcopy(reference), sgd, MIXED, MIXED_SHARES)
    found = outputs(fresh, each[rank])
    for name, value in found.items():
        torch.testing.assert_close(value, expected[rank][name], **NEAR)
    loss_of(found, 0.5).backward()
    torch.stack([loss_of(one, 0.5) for one in expected]).mean().backward()
    reference_optimizer(EmbOptimType.EXACT_SGD, reference, 0.1).step()
    check_factors(fresh, reference)


class _Scored(nn.Module):
    """Collections of both kinds with a dense layer, as TorchRec's trainers take them."""

    def __init__(self, sparse: nn.Module, sequences: nn.Module) -> None:
        super().__init__()
        self.sparse, self.sequences, self.top = sparse, sequences, nn.Linear(15, 1)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        pooled, last = self.sparse(batch).values(), self.sequences(batch)["b"]
        each = last.to_padded_dense(4).tanh().sum(1)
        scores = self.top(torch.cat([pooled, each], dim=1)).squeeze(1)
        return scores.square().mean(), scores.detach()


def goes_by_torchrecs_pipeline() -> None:
    """Ids of the next batch are exchanged while this one trains; dense layers by DDP."""
    torch.manual_seed(0)
    tables = [config("u", 40, 4, "a", "b"), config("w", 30, 3, "c")]
    sequences = EmbeddingCollection(tables=[sequence_config("s", 30, "b")])
    model = mlet.convert(_Scored(EmbeddingBagCollection(tables=tables), sequences), 16)
    reference: Any = copy.deepcopy(model)
    sharders = [two_layer_sharder(), sequence_sharder(EmbOptimType.EXACT_ADAGRAD)]
    kinds = {"u": "column_wise", "w": "row_wise", "s": "row_wise"}
    model = sharded(model, sharders, kinds, {"u": 8})
    dense = torch.optim.SGD(model.module.top.parameters(), lr=0.1)
    pipeline = TrainPipelineSparseDist(model, dense, torch.device("cpu"))
    given = [batches([4] * dist.get_world_size(), seed) for seed in range(4)]
    feed = iter([part for _, (part, _) in given])
    optimizers = [
        torch.optim.Adagrad(
            [*reference.sparse.parameters(), *reference.sequences.parameters()], lr=0.1, eps=1e-8
        ),
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
