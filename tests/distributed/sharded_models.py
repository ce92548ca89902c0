"""Models of the tests of sharded collections, their batches, and what is compared of them."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import mlet
from mlet.distributed import TwoLayerEmbeddingBagCollectionSharder
from mlet.optim import RowWiseAdagrad

KEYS = ["a", "b", "c"]
NEAR = {"rtol": 1e-4, "atol": 1e-5}
SUM, MEAN = PoolingType.SUM, PoolingType.MEAN
TIMEOUT = 60  # seconds that a process waits for another


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
