"""Time one training step of the embedding layers alone: ours, stock PyTorch's, the authors' way.

Criteo-shaped input (26 fields, Zipf-distributed ids), forward, backward and SGD. The contenders
take turns in one process, so that a slow moment of the machine hits all alike; what counts are the
ratios of the medians.

    python benchmarks/embedding.py --batch 2048 --cap 200000 --json result.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mlet.data.synthetic import CRITEO_CARDINALITIES
from mlet.nn import Field, FieldEmbedding


class StockBags(nn.Module):
    """One ``nn.EmbeddingBag(sparse=True)`` a field, as DLRM has them."""

    def __init__(self, sizes: list[int], width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(size, width, mode="sum", sparse=True) for size in sizes
        )

    def forward(self, ids: Tensor) -> Tensor:
        offsets = torch.arange(len(ids))
        columns = ids.unbind(1)
        return torch.stack(
            [bag(column, offsets) for bag, column in zip(self.bags, columns, strict=True)], 1
        )


class AuthorsWay(nn.Module):
    """Bags of width k, each followed by its own linear layer (benghaem/dlrm_mlet)."""

    def __init__(self, sizes: list[int], inner: int, width: int) -> None:
        super().__init__()
        self.tables = StockBags(sizes, inner)
        self.projections = nn.ModuleList(nn.Linear(inner, width, bias=False) for _ in sizes)

    def forward(self, ids: Tensor) -> Tensor:
        wide = self.tables(ids).unbind(1)
        return torch.stack(
            [layer(rows) for layer, rows in zip(self.projections, wide, strict=True)], 1
        )


def zipf_ids(sizes: list[int], rows: int, exponent: float, seed: int) -> Tensor:
    """Ids (rows × F) with P(i) ∝ (i + 1)^−exponent in every field."""
    generator = np.random.default_rng(seed)
    columns = []
    for size in sizes:
        cumulative = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)
        drawn = np.searchsorted(cumulative, generator.random(rows) * cumulative[-1], side="right")
        columns.append(np.minimum(drawn, size - 1))
    return torch.from_numpy(np.stack(columns, 1))


def step(model: nn.Module) -> Callable[[Tensor], None]:
    """One training step: forward, backward of a fixed upstream gradient, SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run(ids: Tensor) -> None:
        optimizer.zero_grad()
        out = model(ids)
        out.backward(torch.ones_like(out))
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2048, help="rows of a step")
    parser.add_argument("--cap", type=int, default=200_000, help="largest table")
    parser.add_argument("--dim", type=int, default=16, help="embedding dimension d")
    parser.add_argument("--inner-dim", type=int, default=64, help="inner dimension k")
    parser.add_argument("--zipf", type=float, default=1.1, help="exponent; 0 is uniform")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each contender")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.sparse.check_sparse_tensor_invariants.disable()
    sizes = [min(size, options.cap) for size in CRITEO_CARDINALITIES]
    d, k = options.dim, options.inner_dim

    def fields(inner: int | None) -> FieldEmbedding:
        return FieldEmbedding([Field(f"C{i}", size, d, inner) for i, size in enumerate(sizes)])

    contenders = {
        "SLT, nn.EmbeddingBag": step(StockBags(sizes, d)),
        "MLET, the authors' way": step(AuthorsWay(sizes, k, d)),
        "SLT, FieldEmbedding": step(fields(None)),
        "MLET, FieldEmbedding": step(fields(k)),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    warm_up = 3
    for turn in range(options.rounds + warm_up):
        ids = zipf_ids(sizes, options.batch, options.zipf, turn)
        for name, run in contenders.items():
            began = time.perf_counter()
            run(ids)
            if turn >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - began))
    median = {name: statistics.median(values) for name, values in times.items()}
    base = median["SLT, nn.EmbeddingBag"]
    table = Table(
        title=f"embedding step, batch {options.batch}, d={d}, k={k}, cap {options.cap:,}, "
        f"Zipf {options.zipf:g}, {torch.get_num_threads()} threads",
        title_justify="left",
    )
    for column in ("contender", "median ms", "÷ stock SLT"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, value in median.items():
        table.add_row(name, f"{value:.2f}", f"{value / base:.2f}")
    Console().print(table)
    if options.json:
        rows = [
            {"name": name, "median_ms": value, "ratio": value / base}
            for name, value in median.items()
        ]
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        settings |= {"torch": torch.__version__, "machine": platform.machine()}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
