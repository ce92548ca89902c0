"""`mlet.optim.fused` under DistributedDataParallel equals one process with the joined batch."""

from __future__ import annotations

import copy
import os
import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer, SparseAdam

import mlet
from mlet.engine import FactoredGradient
from mlet.optim import RowWiseAdagrad, fused

KINDS: dict[str, Any] = {"adam": Adam, "sgd": SGD, "rowwise": RowWiseAdagrad}
PATIENCE = timedelta(seconds=120)
#: Where each process' rows of a batch of 12 end: uneven, and once none at all.
SHARES = {2: [[7, 12], [12, 12], [3, 12], [6, 12]], 4: [[1, 5, 5, 12], [3, 6, 9, 12]] * 2}


class Plain(nn.Module):
    """Two tables and a layer above."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        self.user = nn.Embedding(200, 4, sparse=sparse)
        self.items = nn.EmbeddingBag(90, 4, mode="mean", sparse=sparse)
        self.top = nn.Linear(8, 1)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.top(torch.cat([self.user(users), self.items(items)], dim=1)).squeeze(1)


def converted(seed: int, *, sparse: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    return mlet.convert(Plain(sparse=sparse), inner_dim=12)


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    users = torch.randint(200, (12,), generator=generator)
    items = torch.randint(90, (12, 3), generator=generator)
    return users, items, torch.randn(12, generator=generator)


def made(kind: Any, model: nn.Module) -> tuple[Optimizer, Any]:
    optimizer = fused(kind, model, lr=0.05)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.8)


def backward(model: nn.Module, step: int, rank: int, world: int) -> None:
    """Of this process' rows; the mean over processes is that of the whole batch's mean loss."""
    low, high = [0, *SHARES[world][step]][rank : rank + 2] if world > 1 else (0, 12)
    users, items, target = (part[low:high] for part in batch(step))
    (100 * (model(users, items) - target).square().sum() * world / 12).backward()


def train(kind: Any, model: nn.Module, rank: int, world: int) -> nn.Module:
    """Steps with accumulated and clipped gradients, broken off, saved and resumed."""
    optimizer, schedule = made(kind, model)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    for step in range(2):
        optimizer.zero_grad()
        backward(wrapped, step, rank, world)
        mlet.optim.clip_grad_norm_(wrapped.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    kept = model.state_dict(), optimizer.state_dict(), schedule.state_dict()
    optimizer.detach()  # type: ignore[attr-defined]
    model = converted(seed=9 + rank)
    optimizer, schedule = made(kind, model)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    for part, state in zip((model, optimizer, schedule), kept, strict=True):
        part.load_state_dict(state)
    optimizer.zero_grad()
    if world > 1:
        with wrapped.no_sync():
            backward(wrapped, 2, rank, world)
    else:
        backward(wrapped, 2, rank, world)
    backward(wrapped, 3, rank, world)
    grads = [parameter.grad for parameter in model.parameters()]
    assert sum(isinstance(grad, FactoredGradient) for grad in grads) == 2
    mlet.optim.clip_grad_norm_(wrapped.parameters(), 5.0)
    optimizer.step()
    return model


def train_sparse(model: nn.Module, rank: int, world: int) -> nn.Module:
    """By torch's own optimizers, of sparse gradients."""
    rows = [model.user.inner, model.items.inner]
    others = [p for p in model.parameters() if not any(p is each for each in rows)]
    optimizers = [SparseAdam(rows, lr=0.05), SGD(others, lr=0.01)]
    wrapped = DistributedDataParallel(model) if world > 1 else model
    for step in range(3):
        model.zero_grad()
        if step == 2:  # accumulated
            with wrapped.no_sync() if world > 1 else nullcontext():
                backward(wrapped, 3, rank, world)
        backward(wrapped, step, rank, world)
        assert all(row.grad is not None and row.grad.is_sparse for row in rows)
        for optimizer in optimizers:
            optimizer.step()
    return model


def check_copies(model: nn.Module) -> None:
    """A copy is not trained apart in silence."""
    wrapped = DistributedDataParallel(copy.deepcopy(model))
    with pytest.raises(RuntimeError, match=r"a copy of one whose rows are exchanged"):
        wrapped(*batch(0)[:2])


def worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.TCPStore("127.0.0.1", port, timeout=PATIENCE)
    distributed.init_process_group(
        "gloo", rank=rank, world_size=world, store=store, timeout=PATIENCE
    )
    with pytest.raises(ValueError, match="before the model is wrapped"):
        made(SGD, DistributedDataParallel(converted(seed=rank)))
    for name, kind in KINDS.items():
        model = converted(seed=rank)  # the first process' numbers are to be everybody's
        model = train(kind, model, rank, world)
        torch.save(model.state_dict(), f"{folder}/{name}-{rank}.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is dense
        model = train_sparse(converted(seed=rank, sparse=True), rank, world)
    torch.save(model.state_dict(), f"{folder}/sparse-{rank}.pt")
    check_copies(model)
    store.set(f"rank {rank} is done", "")
    store.wait([f"rank {other} is done" for other in range(world)])
    os._exit(0)  # as in tests/nn/test_torch_citizens.py


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_processes_equal_one_with_the_joined_batch(world: int, tmp_path: Path) -> None:
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (world, store.port, str(tmp_path))
    torch.multiprocessing.spawn(worker, args=arguments, nprocs=world)
    for kind in [*KINDS, "sparse"]:
        single = converted(seed=0, sparse=kind == "sparse")
        if kind == "sparse":
            train_sparse(single, 0, 1)
        else:
            single = train(KINDS[kind], single, 0, 1)
        states = [torch.load(tmp_path / f"{kind}-{rank}.pt") for rank in range(world)]
        for name, value in single.state_dict().items():
            for other in states[1:]:  # the same bits everywhere
                assert torch.equal(states[0][name], other[name]), name
            torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-5)
        Plain().load_state_dict(mlet.collapse_state_dict(states[0]), strict=True)


def test_a_model_trained_by_processes_collapses(tmp_path: Path) -> None:
    meet = f"file://{tmp_path}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    try:
        model = converted(seed=0)
        optimizer = fused(Adam, model, lr=0.05)
        wrapped = DistributedDataParallel(model)
        users, items, target = batch(0)
        (wrapped(users, items) - target).square().sum().backward()
        optimizer.step()
        scores, plain = model(users, items), mlet.collapse_state_dict(model.state_dict())
        table = model.user.inner
        watch = table.register_post_accumulate_grad_hook(lambda parameter: None)
        with pytest.raises(mlet.errors.ConversionError, match="its inner has hooks"):
            mlet.collapse(wrapped)  # somebody's own
        watch.remove()
        assert mlet.collapse(wrapped) is model
        torch.testing.assert_close(model.state_dict(), plain)
        torch.testing.assert_close(model(users, items), scores)
        assert not model.user._forward_pre_hooks, "nothing is exchanged any more"
    finally:
        distributed.destroy_process_group()
