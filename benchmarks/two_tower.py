"""A retrieval model of two tables: what conversion and the fused optimizer cost in its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mlet

ROWS, DIM, INNER_DIM, BATCH = 1_000_000, 32, 64, 4_096

Batch = tuple[Tensor, Tensor, Tensor]
Step = Callable[[Batch], object]


class Tower(nn.Module):
    """A table and two layers."""

    def __init__(self, rows: int, *, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, DIM, sparse=sparse)
        self.layers = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, DIM))

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.table(ids))


class TwoTower(nn.Module):
    """Click logits of users and items."""

    def __init__(self, rows: int = ROWS, *, sparse: bool) -> None:
        super().__init__()
        self.users, self.items = Tower(rows, sparse=sparse), Tower(rows, sparse=sparse)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.users(users) * self.items(items)).sum(dim=1)


def batches(count: int, zipf: float, rows: int = ROWS, device: str = "cpu") -> Iterator[Batch]:
    """Ids with P(i) ∝ (i + 1)^−exponent, scattered over the table; 0 is uniform."""
    generator = np.random.default_rng(0)
    weights = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -zipf)
    place = generator.permutation(rows)
    for _ in range(count):
        ids = [
            torch.from_numpy(
                place[np.searchsorted(weights, generator.random(BATCH) * weights[-1], "right")]
            ).to(device)
            for _ in range(2)
        ]
        labels = torch.from_numpy((generator.random(BATCH) < 0.25).astype(np.float32))
        yield ids[0], ids[1], labels.to(device)


@dataclass(frozen=True)
class Way:
    """How the model is trained.

    Attributes:
        kind: the optimizer of the plain model.
        converted: whether the tables are of two layers.
        fused: whether `mlet.optim.fused` makes the optimizer.
        plain_lookups: as conversion was before: one projection a lookup.
    """

    kind: str
    converted: bool = False
    fused: bool = False


def optimizers(model: nn.Module, way: Way) -> list[torch.optim.Optimizer]:
    """As a user of torch would have them: sparse ones for tables, the dense kind for the rest."""
    options: dict[str, Any] = {"lr": 1e-3}
    dense: Any = {
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "sparse_adam": torch.optim.Adam,
    }[way.kind]
    if way.fused:
        return [mlet.optim.fused(dense, model, **options)]
    if way.kind != "sparse_adam":
        return [dense(model.parameters(), **options)]
    tables = [
        parameter
        for name, parameter in model.named_parameters()
        if name.endswith(("table.weight", "table.inner"))
    ]
    held = {id(parameter) for parameter in tables}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in held]
    return [torch.optim.SparseAdam(tables, **options), dense(rest, **options)]


def step_of(way: Way, rows: int = ROWS, device: str = "cpu") -> Step:
    """One training step."""
    torch.manual_seed(0)
    model: nn.Module = TwoTower(rows, sparse=way.kind != "adam").to(device)
    if way.converted:
        model = mlet.convert(model, inner_dim=INNER_DIM)
    steppers = optimizers(model, way)

    def step(batch: Batch) -> None:
        users, items, labels = batch
        for stepper in steppers:
            stepper.zero_grad()
        F.binary_cross_entropy_with_logits(model(users, items), labels).backward()
        for stepper in steppers:
            stepper.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step
