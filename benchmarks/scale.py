"""What two layers cost a step on many workers: counted and timed here, reckoned for elsewhere.

Three ways to train embedding tables that TorchRec shards: single layers, d wide; two layers whose
vectors are exchanged k wide and projected where they arrive, as TorchRec alone would have it; and
mlet's, projected before they leave. Bytes that processes exchange are counted and compared with the
model of cost; a step is timed, the three in turns. So are those of mlet's own trainer. The same
model then speaks of a billion categories on 8 to 128 GPUs, whose speeds are the manufacturer's.

    python benchmarks/scale.py --json scale.json     # about three minutes
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from rich.console import Console
from rich.table import Table
from scale_trainer import exchanged
from timing import environment, write_json
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import mlet
from mlet.distributed import TwoLayerEmbeddingBagCollectionSharder

Way = Literal["one layer", "two, k wide", "two, d wide"]
WAYS: tuple[Way, ...] = ("one layer", "two, k wide", "two, d wide")
TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True)
class Job:
    """What is trained: F one-valued fields, and B rows a step, of all workers together."""

    categories: int
    fields: int
    d: int
    k: int
    batch: int


@dataclass(frozen=True)
class Cost:
    """Of one step and one worker of G, of tables dealt out whole (table-wise).

    Attributes:
        ids, vectors, projections: bytes that it gives to collectives, of all that it sends and
            keeps: forward and backward together.
        memory: bytes of rows that are read and written.
        flops: of the projections.
        tables: bytes of tables and row-wise Adagrad's numbers that it holds.
    """

    ids: float
    vectors: float
    projections: float
    memory: float
    flops: float
    tables: float


def cost(job: Job, workers: int, way: Way, bytes_a_number: int = 4) -> Cost:
    """The model: every number from what the job is, none fitted."""
    stored = job.d if way == "one layer" else job.k
    sent = job.k if way == "two, k wide" else job.d
    lookups = job.batch * job.fields / workers
    row = stored * bytes_a_number
    projection = 0 if way == "one layer" else job.k * job.d
    return Cost(
        ids=8 * lookups,
        # There as sums of bags, back as their gradients; one worker alone exchanges nothing.
        vectors=2 * 4 * sent * lookups * (workers > 1),
        projections=4 * job.fields * projection * (workers > 1),
        # Read to be looked up; read and written to be updated, and its sum of squares.
        memory=lookups * (3 * row + 8) + 2 * 4 * lookups * sent,
        # There, back, and the projections' own gradient: two for each product.
        flops=3 * 2 * projection * lookups,
        tables=job.categories * (row + 4) / workers,
    )


@dataclass(frozen=True)
class Machine:
    """One GPU and its links, in bytes and operations a second."""

    name: str
    memory: float
    flops: float
    inside: float  # to others of the same machine
    outside: float
    in_a_machine: int


#: NVIDIA's data sheets of the H100 SXM (3.35 TB/s; TF32 494 Tflop/s without sparsity; NVLink
#: 900 GB/s, both ways) and of the DGX H100 (eight of them, each with one 400 Gbit/s port).
H100 = Machine("H100 SXM", 3.35e12, 494e12, 450e9, 50e9, 8)
#: Share of those that is reached: an assumption, and the same of all ways.
REACHED = 0.5


def seconds(one: Cost, workers: int, machine: Machine) -> dict[str, float]:
    """Of a step's parts, one after the other."""
    here = min(workers, machine.in_a_machine)
    exchanged = one.ids + one.vectors
    # All-to-all: to each worker, itself included, as much; what stays in a machine goes apart.
    inside = exchanged * (here - 1) / workers / machine.inside
    outside = exchanged * (workers - here) / workers / machine.outside
    # A ring all-reduce sends nearly twice what it is given.
    link = machine.inside if workers <= machine.in_a_machine else machine.outside
    rings = 2 * one.projections * (workers - 1) / workers / link
    return {
        "exchange": (max(inside, outside) + rings) / REACHED,
        "rows": one.memory / machine.memory / REACHED,
        "projection": one.flops / machine.flops / REACHED,
    }


class KWide(nn.Module):
    """Two layers without mlet: vectors arrive k wide, and are projected there."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.sparse = collection(job, job.k)
        self.projection = nn.Parameter(torch.randn(job.fields, job.k, job.d) / job.k**0.5)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        rows = self.sparse(features).values().view(-1, *self.projection.shape[:2])
        return torch.einsum("bfk,fkd->bfd", rows, self.projection)


class DWide(nn.Module):
    """One layer, or mlet's two."""

    def __init__(self, job: Job, *, two: bool) -> None:
        super().__init__()
        self.sparse: nn.Module = collection(job, job.d)
        self.shape = (job.fields, job.d)
        if two:
            self.sparse = mlet.convert(self.sparse, job.k)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        values: Tensor = self.sparse(features).values()
        return values.view(-1, *self.shape)


def collection(job: Job, dim: int) -> EmbeddingBagCollection:
    each = job.categories // job.fields
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"t{f}", num_embeddings=each, embedding_dim=dim, feature_names=[f"f{f}"]
            )
            for f in range(job.fields)
        ]
    )


def sharded(job: Job, way: Way) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    """The model, its tables table-wise on all processes, and who trains what is not in them."""
    torch.manual_seed(0)
    model: nn.Module = KWide(job) if way == "two, k wide" else DWide(job, two=way == "two, d wide")
    options = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.05}
    ours = way == "two, d wide"
    kind = TwoLayerEmbeddingBagCollectionSharder if ours else EmbeddingBagCollectionSharder
    sharder: Any = kind(options)
    size = dist.get_world_size()
    planner = EmbeddingShardingPlanner(
        topology=Topology(size, "cpu", local_world_size=size),
        constraints={
            f"t{f}": ParameterConstraints(sharding_types=["table_wise"]) for f in range(job.fields)
        },
    )
    plan = planner.collective_plan(model, [sharder], dist.group.WORLD)
    made = DistributedModelParallel(
        model, device=torch.device("cpu"), plan=plan, sharders=[sharder]
    )
    rest = [p for name, p in made.named_parameters() if name.endswith("projection")]
    return made, torch.optim.Adagrad(rest, lr=0.05) if way == "two, k wide" else None


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Bytes of numbers that this process gives to all-to-alls."""
    found = {"vectors": 0.0}
    before = dist.all_to_all_single

    def count(*args: Any, **named: Any) -> Any:
        given = args[1] if len(args) > 1 else named["input"]
        if given.is_floating_point():
            found["vectors"] += given.numel() * given.element_size()
        return before(*args, **named)

    dist.all_to_all_single = count
    try:
        yield found
    finally:
        dist.all_to_all_single = before


def work(rank: int, size: int, job: Job, steps: int, folder: str) -> None:
    """One process: bytes and seconds of each way."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # TorchRec's, of its own past
    torch.set_num_threads(1)
    os.environ.update(LOCAL_WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    store = dist.FileStore(f"{folder}/store{size}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    models = {way: sharded(job, way) for way in WAYS}
    made = torch.Generator().manual_seed(rank)
    rows, names = job.batch // size, [f"f{f}" for f in range(job.fields)]
    lengths = torch.ones(rows * job.fields, dtype=torch.int32)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    sent: dict[str, float] = {}
    for step in range(steps + 2):
        ids = torch.randint(job.categories // job.fields, (rows * job.fields,), generator=made)
        features = KeyedJaggedTensor.from_lengths_sync(names, ids, lengths)
        for way, (model, optimizer) in models.items():
            dist.barrier()
            start = time.perf_counter()
            with counted() as found:
                model(features).square().sum().backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
            dist.barrier()
            if step >= 2:  # the first ones also set things up
                times[way].append(time.perf_counter() - start)
                sent[way] = found["vectors"]
    totals = torch.tensor([sent[way] for way in WAYS], dtype=torch.float64)
    dist.all_reduce(totals)
    own = exchanged(job.categories, job.fields, job.d, job.k, job.batch, steps)
    if rank == 0:
        measured: dict[str, Any] = {
            way: {"seconds": median(times[way]), "vectors": float(total) / size}
            for way, total in zip(WAYS, totals, strict=True)
        }
        measured["trainer"] = own
        Path(folder, f"{size}.json").write_text(json.dumps(measured))
    dist.barrier()
    os._exit(0)  # freeing a gloo group may wait for ever


def measured(job: Job, size: int, steps: int) -> dict[str, Any]:
    """Of each way, on so many processes of this machine: seconds of a step, bytes of vectors; and
    what mlet's own trainer exchanges."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, args=(size, job, steps, folder), nprocs=size)
        found: dict[str, Any] = json.loads(Path(folder, f"{size}.json").read_text())
    return found


def products(job: Job) -> float:
    """Seconds that the three products of one table's projection take here, of a whole batch."""
    torch.set_num_threads(1)
    rows, wide, back = (torch.randn(job.batch, job.k), *torch.randn(2, job.k, job.d))
    grad = torch.randn(job.batch, job.d)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        for _ in (rows @ wide, grad @ wide.t(), torch.mm(rows.t(), grad, out=back)):
            pass
        times.append(time.perf_counter() - start)
    return median(times)


def reckoned_step(job: Job, workers: int, way: Way, single: float, product: float) -> float:
    """Seconds of a step here, where exchanges are copies: rows take their bytes' share of what they
    take of a single layer, and processes share the cores."""
    bytes_ = cost(job, workers, way).memory / cost(job, workers, "one layer").memory
    turns = max(1.0, workers / (os.cpu_count() or 1))
    products_ = 0.0 if way == "one layer" else product * job.fields / workers * turns
    return single * bytes_ + products_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=20, help="timed, of each way")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    here = Job(categories=260_000, fields=26, d=16, k=64, batch=4096)
    rows = []
    product = products(here)
    table = Table(
        "processes", "way", "bytes counted", "reckoned", "step", "reckoned", "÷ one layer"
    )
    trainer: list[dict[str, Any]] = []
    for size in options.processes:
        found = measured(here, size, options.steps)
        trainer += found["trainer"]
        single = found["one layer"]["seconds"]
        for way in WAYS:
            expected = cost(here, size, way).vectors
            step = reckoned_step(here, size, way, single, product)
            one = {
                "processes": size,
                "way": way,
                **found[way],
                "ratio": found[way]["seconds"] / single,
            }
            one |= {"reckoned_vectors": expected, "reckoned_seconds": step}
            rows.append(one)
            table.add_row(
                str(size), way, f"{found[way]['vectors']:,.0f}", f"{expected:,.0f}",
                f"{1e3 * found[way]['seconds']:.0f} ms", f"{1e3 * step:.0f} ms",
                f"{one['ratio']:.2f}",
            )  # fmt: skip
    console.print(table)
    table = Table("processes", "ids", "tables", "bytes to others", "collectives", "step", "held")
    for one in trainer:
        table.add_row(
            str(one["processes"]), one["ids"], one["tables"], f"{one['bytes']:,.0f}",
            f"{one['collectives']:.0f}", f"{1e3 * one['seconds']:.0f} ms", f"{one['held']:,}",
        )  # fmt: skip
    console.print(table)
    far = Job(categories=10**9, fields=26, d=16, k=64, batch=65_536)
    reckoned = []
    table = Table("GPUs", "way", "tables", "in bfloat16", "vectors", "exchange", "rows",
                  "projection", "embedding step", "÷ one layer")  # fmt: skip
    for workers in (8, 16, 32, 64, 128):
        single = sum(seconds(cost(far, workers, "one layer"), workers, H100).values())
        for way in WAYS:
            one_cost = cost(far, workers, way)
            parts = seconds(one_cost, workers, H100)
            total, half = sum(parts.values()), cost(far, workers, way, 2).tables
            reckoned.append({"workers": workers, "way": way, **vars(one_cost), **parts})
            micro = [f"{1e6 * value:.0f} µs" for value in (*parts.values(), total)]
            table.add_row(
                str(workers), way, f"{one_cost.tables / 1e9:.1f} GB", f"{half / 1e9:.1f} GB",
                f"{one_cost.vectors / 1e6:.1f} MB", *micro, f"{total / single:.2f}",
            )  # fmt: skip
    console.print(table)
    if options.json:
        write_json(
            options.json,
            {
                "environment": environment(),
                "measured": rows,
                "trainer": trainer,
                "reckoned": reckoned,
            },
        )


if __name__ == "__main__":
    main()
