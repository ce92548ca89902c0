"""The same runs on a GPU: numbers of the processor's to rounding, the same bits every time."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

import mlet
from mlet.models import DLRMConfig
from mlet.training import RunConfig, resume, train
from mlet.training.config import (
    DenseOptimizerConfig,
    OptimizerName,
    OptimizersConfig,
    TableOptimizerConfig,
    TrainingConfig,
)
from mlet.training.observer import SilentObserver

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def config(data: Path, name: OptimizerName, device: str, *, bias: bool = False) -> RunConfig:
    return RunConfig(
        data=data,
        model=DLRMConfig(dim=4, inner_dim=12, bottom_mlp=[8], top_mlp=[8], table_bias=bias),
        optimizer=OptimizersConfig(
            tables=TableOptimizerConfig(name=name, matched_steps=bias and name != "sgd"),
            dense=DenseOptimizerConfig(name="adagrad"),
        ),
        training=TrainingConfig(batch_size=64, epochs=2, patience=None, threads=1, device=device),
    )


class Watch(SilentObserver):
    def __init__(self, fail_at: int = 0) -> None:
        self.fail_at = fail_at
        self.losses: list[float] = []
        self.records: list[dict[str, float]] = []

    def step(self, loss: float, rows: int) -> None:
        self.losses.append(loss)
        if len(self.losses) == self.fail_at:
            raise KeyboardInterrupt

    def validation(self, record: dict[str, float]) -> None:
        self.records.append(record)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_a_gpu_gives_the_numbers_of_the_processor(
    name: OptimizerName, bias: bool, small_data: Path, tmp_path: Path
) -> None:
    seen = {device: Watch() for device in ("cpu", "cuda")}
    for device, watch in seen.items():
        train(config(small_data, name, device, bias=bias), tmp_path / device, watch)
    np.testing.assert_allclose(seen["cuda"].losses, seen["cpu"].losses, rtol=2e-3)
    for key in ("valid_logloss", "valid_auc"):
        np.testing.assert_allclose(
            [record[key] for record in seen["cuda"].records],
            [record[key] for record in seen["cpu"].records],
            rtol=2e-3,
        )


def test_the_same_run_gives_the_same_bits_also_when_resumed(
    small_data: Path, tmp_path: Path
) -> None:
    settings = config(small_data, "adagrad", "cuda", bias=True)
    whole, again, first, rest = Watch(), Watch(), Watch(fail_at=40), Watch()
    train(settings, tmp_path / "whole", whole)
    train(settings, tmp_path / "again", again)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "part", first)
    resume(tmp_path / "part", rest)
    assert whole.losses == again.losses
    assert [{k: v for k, v in r.items() if "seconds" not in k} for r in whole.records] == [
        {k: v for k, v in r.items() if "seconds" not in k} for r in again.records
    ]
    assert rest.losses == whole.losses[-len(rest.losses) :]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_converted_bag_on_a_gpu_does_what_it_does_on_the_processor(mode: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.EmbeddingBag(50, 4, mode=mode), nn.Linear(4, 1))
    here = mlet.convert(deepcopy(plain), 12, init="fresh")
    ids = torch.randint(50, (64, 3))
    there = mlet.convert(deepcopy(plain), 12, init="fresh").cuda()
    there.load_state_dict(here.state_dict())
    for model, device in ((here, "cpu"), (there, "cuda")):
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(ids.to(device)).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(there(ids.cuda()).cpu(), here(ids), rtol=1e-4, atol=1e-5)
    collapsed = mlet.collapse(deepcopy(there))
    assert collapsed[0].weight.is_cuda
    torch.testing.assert_close(collapsed(ids.cuda()), there(ids.cuda()), rtol=1e-4, atol=1e-5)
