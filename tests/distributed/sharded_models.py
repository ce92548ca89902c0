"""Models of the tests of sharded collections, their batches, and what is compared of them."""

from __future__ import annotations

import logging
import os
import traceback
from collections import Counter
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
from torchrec.distributed.comm import get_local_size
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
    """One of several processes, two of which are a machine; what went wrong is left in a file."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    local = min(size, 2)
    os.environ.update(LOCAL_WORLD_SIZE=str(local), LOCAL_RANK=str(rank % local))
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
    """Features of several tables, tables of two features, sums and means, several widths."""
    return [
        config("u", 40, 4, "a", "b"),
        config("v", 31, 4, "b", pooling=MEAN),
        config("w", 30, 8, "c", pooling=MEAN),
        config("x", 34, 4, "c"),
        config("p", 33, 4, "a", "c"),
        config("q", 32, 12, "b", pooling=MEAN),
        config("g", 35, 4, "a", pooling=MEAN),
        config("h", 36, 12, "b", "c"),
    ]


def built(**options: Any) -> Any:
    torch.manual_seed(0)
    plain = EmbeddingBagCollection(tables=configs(), **options)
    model = nn.ModuleDict({"sparse": plain})
    return mlet.convert(model, {"*.w": 24, "*.[uvxqgh]": 16, "*.p": 32})


#: How each table is sharded; columns of p and g in shares that are projected where they are, of q
#: and h in such as are projected where they arrive.
SHARDED = {
    "u": "table_wise",
    "v": "row_wise",
    "w": "table_row_wise",
    "x": "row_wise",
    "p": "column_wise",
    "q": "table_column_wise",
    "g": "grid_shard",
    "h": "grid_shard",
}
#: How wide the shares of columns are.
SHARES = {"p": 8, "q": 8, "g": 8, "h": 8}
#: What row-wise Adagrad can train; what fits on one machine.
WHOLE_ROWS = {name: "row_wise" if name in SHARES else kind for name, kind in SHARDED.items()}
ONE_MACHINE = {**SHARDED, "g": "column_wise", "h": "row_wise"}


def sharded(
    model: nn.Module,
    sharder: Any,
    kinds: dict[str, str] | None = None,
    shares: dict[str, int] | None = None,
) -> Any:
    """As TorchRec's planner has it, given the kinds of sharding, and shares of columns.

    Args:
        sharder: one, or a list of several.
    """
    sharders = sharder if isinstance(sharder, list) else [sharder]
    size = dist.get_world_size()
    shares = SHARES if shares is None else shares
    planner = EmbeddingShardingPlanner(
        topology=Topology(size, "cpu", local_world_size=get_local_size(size)),
        constraints={
            table: ParameterConstraints(sharding_types=[kind], min_partition=shares.get(table))
            for table, kind in (kinds or SHARDED).items()
        },
    )
    plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    return DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=sharders)


#: Tables that are not converted among them, y and z; p and q as above.
MIXED = {
    "u": "table_wise",
    "v": "row_wise",
    "w": "row_wise",
    "y": "row_wise",
    "p": "column_wise",
    "q": "column_wise",
    "z": "column_wise",
    "x": "table_row_wise",
}
MIXED_SHARES = {"p": 8, "q": 8, "z": 4}


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
    whole = {}
    for name, projection in collection.projections.items():
        factors = reference["sparse"].tables.factors(name)
        torch.testing.assert_close(projection.detach(), factors.projection, **NEAR)
        whole[name] = factors.inner
    for name, layer in ordinary(reference).items():
        whole[name] = layer.weight.detach()
    assert set(whole) == set(collection.module_sharding_plan)
    for name, values in whole.items():
        for shard in collection.local_shards(name):
            (row, column), (rows, columns) = (
                shard.metadata.shard_offsets,
                shard.metadata.shard_sizes,
            )
            own = values[row : row + rows, column : column + columns]
            torch.testing.assert_close(shard.tensor, own, **NEAR)


def ordinary(reference: Any) -> dict[str, Any]:
    """Layers of the tables that were not converted."""
    layers = reference["sparse"].tables.named_children()
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {name: layer for name, layer in layers if isinstance(layer, kinds)}


def reference_optimizer(rule: Any, model: Any, lr: float) -> Any:
    if rule == EmbOptimType.EXACT_SGD:
        return torch.optim.SGD(model.parameters(), lr=lr)
    if rule == EmbOptimType.EXACT_ADAGRAD:
        return torch.optim.Adagrad(model.parameters(), lr=lr, eps=1e-8)
    pairs = list(model["sparse"].factor_parameters())
    rows = [inner for inner, _ in pairs] + [layer.weight for layer in ordinary(model).values()]
    both = [RowWiseAdagrad(rows, lr=lr, eps=1e-8)]
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


def batches_of_their_own() -> list[KeyedJaggedTensor]:
    """Of each process, features with batches of different sizes, whose rows are handed out again
    (VBE)."""
    size = dist.get_world_size()
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
    return each
