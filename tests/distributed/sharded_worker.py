"""What the processes of the tests of sharded collections do."""

from __future__ import annotations

import copy
import logging
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint
from torchrec.distributed import DistributedModelParallel, comm_ops
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import mlet
from mlet.distributed import TwoLayerEmbeddingBagCollectionSharder
from mlet.errors import ConversionError
from mlet.optim import RowWiseAdagrad

KEYS = ["a", "b", "c"]
NEAR = {"rtol": 1e-4, "atol": 1e-5}
SUM, MEAN = PoolingType.SUM, PoolingType.MEAN
TIMEOUT = 20  # seconds that a process waits for another


def run(task: Callable[[Path], None], rank: int, size: int, folder: Path) -> None:
    """One of several processes; what went wrong is left in a file."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.environ.update(LOCAL_WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    try:
        with processes(rank, size, folder / f"store{size}"):
            task(folder)
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        raise


@contextmanager
def processes(rank: int, size: int, store: Path) -> Iterator[None]:
    limit = timedelta(seconds=TIMEOUT)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size, timeout=limit
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def config(name: str, n: int, dim: int, *features: str, pooling: Any = SUM) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=n,
        embedding_dim=dim,
        feature_names=list(features),
        pooling=pooling,
    )


def configs() -> list[EmbeddingBagConfig]:
    """A feature of two tables, a table of two features, sums and means, several widths."""
    return [
        config("u", 40, 4, "a", "b"),
        config("v", 31, 4, "b", pooling=MEAN),
        config("w", 30, 8, "c", pooling=MEAN),
        config("x", 34, 4, "c"),
    ]


def built(**options: Any) -> Any:
    torch.manual_seed(0)
    plain = EmbeddingBagCollection(tables=configs(), **options)
    model = nn.ModuleDict({"sparse": plain})
    return mlet.convert(model, {"*.w": 24, "*.[uvx]": 16})


#: How each table is sharded.
SHARDED = {"u": "table_wise", "v": "row_wise", "w": "table_row_wise", "x": "row_wise"}


def sharded(model: nn.Module, sharder: Any, kinds: dict[str, str] | None = None) -> Any:
    """As TorchRec's planner has it, given the kinds of sharding."""
    size = dist.get_world_size()
    planner = EmbeddingShardingPlanner(
        topology=Topology(size, "cpu", local_world_size=size),
        constraints={
            table: ParameterConstraints(sharding_types=[kind])
            for table, kind in (kinds or SHARDED).items()
        },
    )
    plan = planner.collective_plan(model, [sharder], dist.group.WORLD)
    return DistributedModelParallel(
        model, device=torch.device("cpu"), plan=plan, sharders=[sharder]
    )


#: A table that is not converted among them.
MIXED = {"u": "table_wise", "v": "row_wise", "w": "row_wise", "y": "row_wise"}


def two_layer_sharder(rule: Any = EmbOptimType.EXACT_ADAGRAD, lr: float = 0.1) -> Any:
    return TwoLayerEmbeddingBagCollectionSharder({"optimizer": rule, "learning_rate": lr})


def batches(sizes: list[int], seed: int, *, weighted: bool = False) -> tuple[Any, Any]:
    """All of a batch, and what this process has of it: ``sizes`` of each."""
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(KEYS), sum(sizes)), generator=made)
    weights = torch.rand(int(lengths.sum()), generator=made) if weighted else None
    values = torch.randint(0, 30, (int(lengths.sum()),), generator=made)
    joined = KeyedJaggedTensor.from_lengths_sync(KEYS, values, lengths.flatten(), weights)
    rank = dist.get_rank()
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    ends = lengths.flatten().cumsum(0).view_as(lengths)
    starts = ends - lengths
    own = torch.cat(
        [torch.arange(int(s[rows][0]), int(e[rows][-1])) for s, e in zip(starts, ends, strict=True)]
    )
    part = KeyedJaggedTensor.from_lengths_sync(
        KEYS,
        values[own],
        lengths[:, rows].flatten(),
        None if weights is None else weights[own],
    )
    return joined, (part, rows)


def outputs(model: Any, batch: Any) -> dict[str, Tensor]:
    out = model.module["sparse"](batch) if hasattr(model, "plan") else model["sparse"](batch)
    return dict(out.to_dict())


def loss_of(found: dict[str, Tensor], target: float) -> Tensor:
    """A sum over rows, with second derivatives."""
    return torch.stack([((value - target) ** 2).sum() for _, value in sorted(found.items())]).sum()


def step(model: Any, sizes: list[int], seed: int, **options: Any) -> dict[str, Tensor]:
    """One step of the sharded model: the mean over all rows, as TorchRec averages processes."""
    _, (part, _) = batches(sizes, seed, **options)
    found = outputs(model, part)
    (loss_of(found, 0.5) * len(sizes) / sum(sizes)).backward()
    return found


def check_like(model: Any, reference: Any, optimizer: Any, sizes: list[int], seed: int, **o: Any):
    """The outputs of the unsharded model on the joined batch; and a step of both."""
    joined, (_, rows) = batches(sizes, seed, **o)
    expected = outputs(reference, joined)
    found = step(model, sizes, seed, **o)
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name][rows], **NEAR)
    optimizer.zero_grad()
    (loss_of(expected, 0.5) / sum(sizes)).backward()
    optimizer.step()


def check_factors(model: Any, reference: Any) -> None:
    collection = model.module["sparse"]
    for name, projection in collection.projections.items():
        factors = reference["sparse"].tables.factors(name)
        torch.testing.assert_close(projection.detach(), factors.projection, **NEAR)
        for shard in collection.local_shards(name):
            (first, _), (count, _) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            torch.testing.assert_close(shard.tensor, factors.inner[first : first + count], **NEAR)
    for name, layer in reference["sparse"].tables.named_children():
        if isinstance(layer, nn.EmbeddingBag):
            for shard in collection.local_shards(name):
                first, count = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
                torch.testing.assert_close(
                    shard.tensor, layer.weight[first : first + count].detach(), **NEAR
                )


def reference_optimizer(rule: Any, model: Any, lr: float) -> Any:
    if rule == EmbOptimType.EXACT_SGD:
        return torch.optim.SGD(model.parameters(), lr=lr)
    if rule == EmbOptimType.EXACT_ADAGRAD:
        return torch.optim.Adagrad(model.parameters(), lr=lr, eps=1e-8)
    pairs = list(model["sparse"].factor_parameters())
    both = [RowWiseAdagrad([inner for inner, _ in pairs], lr=lr, eps=1e-8)]
    both.append(torch.optim.Adagrad([w for _, w in pairs], lr=lr, eps=1e-8))  # type: ignore[arg-type]
    return _Both(both)


class _Both:
    def __init__(self, each: list[Any]) -> None:
        self.each = each

    def zero_grad(self) -> None:
        for one in self.each:
            one.zero_grad()

    def step(self) -> None:
        for one in self.each:
            one.step()


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
