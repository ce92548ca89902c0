"""Time one training step of the embedding layers alone, against stock PyTorch, FBGEMM, the authors.

Criteo-shaped input (26 fields, Zipf-distributed or uniform ids): forward, backward of a fixed
upstream gradient, optimizer. The contenders take turns in one process; what counts are the ratios
of the medians.

    python benchmarks/embedding.py                      # the reference setting
    python benchmarks/embedding.py --grid --json all.json
    python benchmarks/embedding.py --device cuda  # without FBGEMM: ours is a CPU build
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timing import environment, interleave, write_json
from torch import Tensor, nn

from mlet.data.synthetic import CRITEO_CARDINALITIES
from mlet.nn import Field, FieldEmbedding
from mlet.optim import FusedRowWiseAdagrad, FusedSGD, RowWiseAdagrad

try:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )
except ImportError:  # the extra "clients"
    SplitTableBatchedEmbeddingBagsCodegen = None

LEARNING_RATE = 0.01
#: Wide tables are held three times over (the authors', FBGEMM's, ours) only up to this size.
_LARGEST_THIRD = 4 * 2**30

STOCK = "SLT, nn.EmbeddingBag"
FBGEMM = "SLT, FBGEMM TBE"
AUTHORS = "MLET, the authors' way"
WIDE = "MLET, FBGEMM TBE at width k + projection"
OURS_SLT = "SLT, mlet"
OURS = "MLET, mlet"


@dataclass(frozen=True)
class Setting:
    """What one measurement is of."""

    batch: int = 2_048
    cap: int = 200_000
    inner_dim: int = 64
    dim: int = 16
    zipf: float = 1.1
    optimizer: str = "sgd"
    device: str = "cpu"

    @property
    def sizes(self) -> list[int]:
        return [min(size, self.cap) for size in CRITEO_CARDINALITIES]

    def __str__(self) -> str:
        ids = f"Zipf {self.zipf:g}" if self.zipf else "uniform"
        return (
            f"batch {self.batch}, k={self.inner_dim}, d={self.dim}, cap {self.cap:,}, {ids}, "
            f"{self.optimizer}, {self.device}"
        )


class StockBags(nn.Module):
    """One ``nn.EmbeddingBag(sparse=True)`` a field, as DLRM has them."""

    def __init__(self, sizes: list[int], width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(
            # Filled, not drawn: drawing 10⁹ numbers takes longer than measuring with them.
            nn.EmbeddingBag.from_pretrained(
                torch.full((size, width), 0.01), freeze=False, mode="sum", sparse=True
            )
            for size in sizes
        )

    def forward(self, ids: Tensor) -> Tensor:
        offsets = torch.arange(len(ids), device=ids.device)
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


class TableBatched(nn.Module):
    """FBGEMM's table-batched embeddings, its optimizer fused into the backward pass."""

    def __init__(self, sizes: list[int], width: int, optimizer: str) -> None:
        super().__init__()
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(size, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in sizes],
            optimizer=EmbOptimType.EXACT_SGD
            if optimizer == "sgd"
            else EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
        )
        self.tables.init_embedding_weights_uniform(-0.01, 0.01)
        self.shape = (len(sizes), width)

    def forward(self, ids: Tensor) -> Tensor:
        indices = ids.t().reshape(-1)
        out: Tensor = self.tables(indices, torch.arange(len(indices) + 1))
        return out.view(len(ids), *self.shape)


class WideTableBatched(nn.Module):
    """FBGEMM at width k, then one batched product with all projections."""

    def __init__(self, sizes: list[int], inner: int, width: int, optimizer: str) -> None:
        super().__init__()
        self.tables = TableBatched(sizes, inner, optimizer)
        self.projection = nn.Parameter(0.25 * torch.randn(len(sizes), inner, width))

    def forward(self, ids: Tensor) -> Tensor:
        return torch.bmm(self.tables(ids).transpose(0, 1), self.projection).transpose(0, 1)


def id_batches(setting: Setting, count: int) -> Iterator[Tensor]:
    """Ids (B × F) with P(i) ∝ (i + 1)^−exponent in every field."""
    generator = np.random.default_rng(0)
    weights = [
        np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -setting.zipf)
        for size in setting.sizes
    ]
    for _ in range(count):
        columns = [
            np.searchsorted(w, generator.random(setting.batch) * w[-1], side="right")
            for w in weights
        ]
        yield torch.from_numpy(np.stack(columns, 1)).to(setting.device)


def optimizers(model: nn.Module, name: str) -> list[torch.optim.Optimizer]:
    """The optimizers each way has: ours fused; FBGEMM's tables update themselves."""
    if isinstance(model, FieldEmbedding):
        fused = FusedSGD if name == "sgd" else FusedRowWiseAdagrad
        return [fused(model, lr=LEARNING_RATE)]
    tables = [
        p
        for module in model.modules()
        if isinstance(module, nn.EmbeddingBag)
        for p in module.parameters()
    ]
    rest = {id(p) for p in tables}
    projections = [p for p in model.parameters() if id(p) not in rest]
    if isinstance(model, (TableBatched, WideTableBatched)):
        projections = [model.projection] if isinstance(model, WideTableBatched) else []
        tables = []
    result: list[torch.optim.Optimizer] = []
    if name == "sgd":
        parameters = tables + projections
        return [torch.optim.SGD(parameters, lr=LEARNING_RATE)] if parameters else []
    if tables:
        result.append(RowWiseAdagrad(tables, lr=LEARNING_RATE))
    if projections:
        result.append(torch.optim.Adagrad(projections, lr=LEARNING_RATE))
    return result


def training_step(model: nn.Module, setting: Setting) -> Callable[[Tensor], None]:
    """Forward, backward of a fixed upstream gradient, optimizer; any batch up to 8 192 rows."""
    steppers = optimizers(model, setting.optimizer)
    upstream = torch.randn(8_192, len(setting.sizes), setting.dim).to(setting.device)
    upstream /= setting.batch

    def run(ids: Tensor) -> None:
        for optimizer in steppers:
            optimizer.zero_grad()
        model(ids).backward(upstream[: len(ids)])
        for optimizer in steppers:
            optimizer.step()
        if setting.device != "cpu":
            torch.cuda.synchronize()

    return run


def contenders(setting: Setting) -> dict[str, Callable[[Tensor], None]]:
    """Each way's training step, for the setting's tables and optimizer."""
    sizes, d, k = setting.sizes, setting.dim, setting.inner_dim

    def fields(inner: int | None) -> FieldEmbedding:
        return FieldEmbedding([Field(f"C{i}", size, d, inner) for i, size in enumerate(sizes)])

    builders: dict[str, Callable[[], nn.Module]] = {
        STOCK: lambda: StockBags(sizes, d),
        AUTHORS: lambda: AuthorsWay(sizes, k, d),
        OURS_SLT: lambda: fields(None),
        OURS: lambda: fields(k),
    }
    if SplitTableBatchedEmbeddingBagsCodegen is not None and setting.device == "cpu":
        builders[FBGEMM] = lambda: TableBatched(sizes, d, setting.optimizer)
        if 4 * sum(sizes) * k <= _LARGEST_THIRD:
            builders[WIDE] = lambda: WideTableBatched(sizes, k, d, setting.optimizer)
    return {
        name: training_step(build().to(setting.device), setting) for name, build in builders.items()
    }


def measure(setting: Setting, rounds: int) -> dict[str, float]:
    """Milliseconds of a step, by contender."""
    return interleave(contenders(setting), id_batches(setting, rounds + 3))


def measure_grid(rounds: int, device: str) -> Iterator[tuple[Setting, dict[str, float]]]:
    """Optimizer, cap, shape, ids, batch: every combination, tables made once for each shape."""
    for optimizer, cap, (k, d) in product(
        ("sgd", "rowwise_adagrad"), (200_000, 2_000_000), ((64, 16), (64, 4), (128, 16))
    ):
        tables = Setting(cap=cap, inner_dim=k, dim=d, optimizer=optimizer, device=device)
        steps = contenders(tables)
        for zipf, batch in product((1.1, 0.0), (256, 2_048, 8_192)):
            setting = replace(tables, zipf=zipf, batch=batch)
            yield setting, interleave(steps, id_batches(setting, rounds + 3))


def show(setting: Setting, medians: dict[str, float]) -> None:
    table = Table(title=str(setting), title_justify="left")
    for column in ("contender", "median ms", "÷ stock SLT"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", f"{value / medians[STOCK]:.2f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Setting()
    parser.add_argument("--batch", type=int, default=default.batch, help="rows of a step")
    parser.add_argument("--cap", type=int, default=default.cap, help="largest table")
    parser.add_argument("--dim", type=int, default=default.dim, help="embedding dimension d")
    parser.add_argument(
        "--inner-dim", type=int, default=default.inner_dim, help="inner dimension k"
    )
    parser.add_argument("--zipf", type=float, default=default.zipf, help="exponent; 0 is uniform")
    parser.add_argument(
        "--optimizer", choices=["sgd", "rowwise_adagrad"], default=default.optimizer
    )
    parser.add_argument("--device", default=default.device, help="cpu or cuda")
    parser.add_argument("--grid", action="store_true", help="all 72 settings instead of one")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each contender")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: this torch sees no GPU")

    torch.manual_seed(0)
    torch.sparse.check_sparse_tensor_invariants.disable()
    one = replace(
        default,
        **{
            name: getattr(options, name)
            for name in ("batch", "cap", "dim", "inner_dim", "zipf", "optimizer", "device")
        },
    )
    rows = []
    measured = (
        measure_grid(options.rounds, options.device)
        if options.grid
        else [(one, measure(one, options.rounds))]
    )
    for setting, medians in measured:
        show(setting, medians)
        rows.append({**asdict(setting), "median_ms": medians})
        write_json(options.json, {"environment": environment("fbgemm_gpu-cpu"), "rows": rows})


if __name__ == "__main__":
    main()
