"""What the engine's choices rest on: ways to make one step, whole tables or distinct rows.

python benchmarks/engine_choices.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from embedding import LEARNING_RATE, Setting, id_batches, training_step
from rich.console import Console
from rich.table import Table
from timing import environment, interleave, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from mlet.engine import BackendName, Lookups, TableStack, use_backend
from mlet.engine.cpu import backend as cpu_backend
from mlet.nn import Field, FieldEmbedding

SETTING = Setting()


class EachLookup(nn.Module):
    """The plain formula on stacked tables: every lookup's row gathered, one batched product."""

    def __init__(self, sizes: list[int], inner: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.rand(sum(sizes), inner) / sizes[0])
        self.projection = nn.Parameter(torch.randn(len(sizes), inner, width) / 4)
        first = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("first", first)

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids + self.first, self.inner, sparse=True)
        return torch.bmm(rows.transpose(0, 1), self.projection).transpose(0, 1)


def fields() -> FieldEmbedding:
    return FieldEmbedding(
        [
            Field(f"C{i}", size, SETTING.dim, SETTING.inner_dim)
            for i, size in enumerate(SETTING.sizes)
        ]
    )


def with_backend(name: BackendName, step: Callable[[Tensor], object]) -> Callable[[Tensor], None]:
    def run(ids: Tensor) -> None:
        with use_backend(name):
            step(ids)

    return run


def with_torchs_optimizer(model: FieldEmbedding) -> Callable[[Tensor], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    upstream = torch.randn(SETTING.batch, len(SETTING.sizes), SETTING.dim) / SETTING.batch

    def run(ids: Tensor) -> None:
        optimizer.zero_grad()
        model(ids).backward(upstream)
        optimizer.step()

    return run


def ways(rounds: int) -> dict[str, float]:
    """Milliseconds of an MLET step in the reference setting."""
    shape = (SETTING.sizes, SETTING.inner_dim, SETTING.dim)
    return interleave(
        {
            "distinct rows, Numba, fused update": training_step(fields(), SETTING),
            "distinct rows, Numba, torch.optim.SGD": with_torchs_optimizer(fields()),
            "distinct rows, torch operations, fused update": with_backend(
                "torch", training_step(fields(), SETTING)
            ),
            "each lookup, stacked tables": training_step(EachLookup(*shape), SETTING),
            "each lookup, stacked tables, torch.compile": training_step(
                torch.compile(EachLookup(*shape)),  # type: ignore[arg-type]
                SETTING,
            ),
        },
        id_batches(SETTING, rounds + 3),
    )


def whole_or_distinct(rounds: int) -> list[dict[str, float]]:
    """Microseconds of finding and projecting the rows of a table of n categories."""
    rows = []
    default = cpu_backend.LOOKUP_COST
    for n in (16, 32, 64, 128, 256, 512, 1_024, 2_048):
        tables = 26
        table = torch.randn(n * tables, SETTING.inner_dim)
        projection = torch.randn(tables, SETTING.inner_dim, SETTING.dim)
        stack = TableStack(tuple(map(str, range(tables))), (n,) * tables)
        backend = cpu_backend.CPUBackend()

        def step(cost: float) -> Callable[[Lookups], None]:
            def run(lookups: Lookups) -> None:
                cpu_backend.LOOKUP_COST = cost  # type: ignore[assignment]
                distinct = backend.find_distinct(table, projection, lookups, stack)  # noqa: B023
                backend.embed(table, projection, lookups, distinct)  # noqa: B023

            return run

        torch.manual_seed(0)
        inputs = [
            Lookups.gather(torch.randint(n, (SETTING.batch, tables))) for _ in range(rounds + 3)
        ]
        medians = interleave({"whole": step(float("inf")), "distinct": step(0)}, inputs)
        rows.append({"n": n, **{name: 1e3 * value / tables for name, value in medians.items()}})
    cpu_backend.LOOKUP_COST = default
    return rows


def floor(measured_ms: float) -> dict[str, float]:
    """The least that a step can take: its bytes at this machine's speed of copying, its operations
    at its speed of multiplying matrices, whichever is longer.

    Bytes: ids and slots; distinct rows of W2 read in the forward pass, read and written in the
    update;
    outputs written, upstream gradients read. Operations: three products of R × k × d.
    """
    ids = next(id_batches(SETTING, 1))
    distinct = sum(len(torch.unique(column)) for column in ids.unbind(1))
    lookups, k, d = ids.numel(), SETTING.inner_dim, SETTING.dim
    data = 12 * lookups + 3 * 4 * distinct * k + 2 * 4 * lookups * d
    operations = 3 * 2 * distinct * k * d
    source = torch.rand(2**24)  # 64 MiB, beyond the caches
    target = torch.empty_like(source)
    a, b = torch.rand(4_096, 512), torch.rand(512, 512)
    speeds = interleave(
        {"copy": lambda _: target.copy_(source), "multiply": lambda _: a @ b}, range(23)
    )
    bandwidth = 2 * source.nbytes / (1e-3 * speeds["copy"])
    rate = 2 * 4_096 * 512 * 512 / (1e-3 * speeds["multiply"])
    least = 1e3 * max(data / bandwidth, operations / rate)
    return {
        "distinct": distinct / lookups,
        "megabytes": data / 1e6,
        "million_operations": operations / 1e6,
        "copy_gigabytes_per_second": bandwidth / 1e9,
        "multiply_gigaflops": rate / 1e9,
        "floor_ms": least,
        "measured_ms": measured_ms,
        "measured_over_floor": measured_ms / least,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each contender")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.sparse.check_sparse_tensor_invariants.disable()
    began = time.perf_counter()
    medians = ways(options.rounds)
    console = Console()
    table = Table(title=f"one MLET step, {SETTING}", title_justify="left")
    table.add_column("way")
    table.add_column("median ms", justify="right")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    crossover = whole_or_distinct(options.rounds)
    table = Table(title="µs a table: rows found and projected, uniform ids", title_justify="left")
    for column in ("n", "whole table", "distinct rows"):
        table.add_column(column, justify="right")
    for row in crossover:
        table.add_row(f"{row['n']:,}", f"{row['whole']:.1f}", f"{row['distinct']:.1f}")
    console.print(table)
    least = floor(medians["distinct rows, Numba, fused update"])
    table = Table(title="the floor of that step", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    for name, value in least.items():
        table.add_row(name.replace("_", " "), f"{value:.2f}")
    console.print(table)
    write_json(
        options.json,
        {
            "environment": environment(),
            "floor": least,
            "ways": medians,
            "whole_or_distinct": crossover,
            "seconds": time.perf_counter() - began,
        },
    )


if __name__ == "__main__":
    main()
