"""What processes of mlet's own trainer exchange in a step, of whole tables and of sharded ones.

For ``benchmarks/scale.py``, in its processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from mlet.data import Batch
from mlet.models import CTRModel
from mlet.nn import Field, FieldEmbedding
from mlet.optim import FusedRowWiseAdagrad
from mlet.table_shards import Shards, sharded
from mlet.training.processes import Processes
from mlet.training.sharded_rows import ShardedRows

#: What ids are drawn by: all alike, or the i-th in proportion to i to the minus this.
IDS = {"uniform": 0.0, "Zipf 1.1": 1.1}


class Sum(CTRModel):
    """Tables alone: dense layers are the same either way."""

    def __init__(self, embedding: FieldEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, batch: Batch) -> Tensor:
        vectors: Tensor = self.embedding(batch.ids, batch.bags)
        return vectors.square().sum(dim=(1, 2))


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Bytes that this process gives to others: to each in an all-gather, and in an all-reduce,
    which is a ring, all that it has, nearly twice."""
    found = {"bytes": 0.0, "collectives": 0.0}
    size, rank = dist.get_world_size(), dist.get_rank()
    originals = dist.all_to_all_single, dist.all_gather, dist.all_reduce

    def add(count: float, tensor: Tensor) -> None:
        found["bytes"] += count * tensor.element_size()
        found["collectives"] += 1

    def to_all(got: Tensor, sent: Tensor, theirs: Any, mine: Any) -> Any:
        add(len(sent) - mine[rank], sent)
        return originals[0](got, sent, theirs, mine)

    def gather(out: Any, mine: Tensor, group: Any = None) -> Any:
        add(mine.numel() * (size - 1), mine)
        return originals[1](out, mine, group=group)

    def reduce(values: Tensor) -> Any:
        add(2 * values.numel() * (size - 1) / size, values)
        return originals[2](values)

    dist.all_to_all_single, dist.all_gather, dist.all_reduce = to_all, gather, reduce
    try:
        yield found
    finally:
        dist.all_to_all_single, dist.all_gather, dist.all_reduce = originals


def exchanged(
    categories: int, fields: int, d: int, k: int, batch: int, steps: int
) -> list[dict[str, Any]]:
    """Of each way and kind of ids: bytes that a process gives to others in a step, on average;
    seconds of the step, and bytes of tables and states that a process holds."""
    processes, rows = Processes(), []
    if processes.size == 1:
        return rows
    mine = batch // processes.size
    for name, exponent in IDS.items():
        weights = torch.arange(1, categories // fields + 1, dtype=torch.float64) ** -exponent
        made = torch.Generator().manual_seed(processes.rank)
        for way in ("whole", "sharded"):
            torch.manual_seed(0)
            with sharded(Shards(processes.rank, processes.size, 0) if way == "sharded" else None):
                model = Sum(
                    FieldEmbedding([Field(f"f{f}", len(weights), d, k) for f in range(fields)])
                )
            optimizer = FusedRowWiseAdagrad(model, lr=0.05)
            tables = ShardedRows(model, processes) if way == "sharded" else None
            times, sent = [], []
            for _ in range(steps + 1):
                ids = torch.multinomial(weights, mine * fields, True, generator=made)
                own = Batch({}, torch.empty(mine, 0), ids.view(mine, fields), {})
                dist.barrier()
                start = time.perf_counter()
                with counted() as found:
                    if tables is not None:
                        tables.fetch(own)
                    optimizer.zero_grad()
                    model(own).sum().backward()
                    if tables is None:
                        processes.add_gradients(model)
                    else:
                        tables.send_gradients()
                        processes.add_shared(model, tables.tables)
                optimizer.step()
                dist.barrier()
                times.append(time.perf_counter() - start)
                sent.append([found["bytes"], found["collectives"]])
            means = torch.tensor(sent[1:], dtype=torch.float64).mean(dim=0)
            dist.all_reduce(means)
            (group,) = optimizer.param_groups
            held = sum(p.nbytes for p in group["params"])
            held += sum(s.nbytes for state in optimizer.state.values() for s in state.values())
            rows.append(
                {
                    "processes": processes.size,
                    "ids": name,
                    "tables": way,
                    "bytes": float(means[0]) / processes.size,
                    "collectives": float(means[1]) / processes.size,
                    "seconds": median(times[1:]),
                    "held": held,
                }
            )
    return rows
