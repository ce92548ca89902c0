"""Runs of a study that were interrupted, moved, or damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mlet.errors import RunError
from mlet.models import DLRMConfig
from mlet.studies.runs import Outcome, read_test_scores, score_run, train_and_score
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.loop import SilentObserver


class Stop(SilentObserver):
    def __init__(self) -> None:
        self.steps = 0

    def step(self, loss: float, rows: int) -> None:
        self.steps += 1
        if self.steps == 12:
            raise KeyboardInterrupt


def config(data: Path, **training: object) -> RunConfig:
    return RunConfig(
        data=data,
        model=DLRMConfig(dim=2, inner_dim=8, bottom_mlp=[8], top_mlp=[8]),
        optimizer=OptimizersConfig.same("sgd"),
        training=TrainingConfig(batch_size=64, epochs=1, threads=1, **training),
    )


def finish(config: RunConfig, path: Path) -> Outcome:
    return train_and_score(config, path, precisions=["float32"], resamples=3, device="cpu")


def test_an_unfinished_run_goes_on_wherever_it_is_mounted(small_data: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(small_data, here / "data")
    with pytest.raises(KeyboardInterrupt):
        train(config(here / "data"), here / "run", Stop())
    here.rename(there)
    whole = finish(config(small_data), tmp_path / "whole")
    assert finish(config(there / "data"), there / "run") == whole
    scores = [read_test_scores(run).predictions for run in (there / "run", tmp_path / "whole")]
    assert np.array_equal(*scores)
    for other in (config(there / "data", seed=1), config(there / "data", patience=1)):
        with pytest.raises(RunError, match="holds a run with other settings"):
            finish(other, there / "run")


def test_damaged_scores_are_made_again_as_the_error_says(small_data: Path, tmp_path: Path) -> None:
    finish(config(small_data), tmp_path / "run")
    before = read_test_scores(tmp_path / "run")
    file = tmp_path / "run" / "test.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), b"x", b""):
        file.write_bytes(damaged)
        with pytest.raises(
            RunError, match=r"test\.npz: damaged .*; remove it and give the command"
        ):
            read_test_scores(tmp_path / "run")
    file.unlink()
    score_run(tmp_path / "run", small_data, 3, "float32")
    after = read_test_scores(tmp_path / "run")
    assert np.array_equal(after.predictions, before.predictions)
    assert np.array_equal(after.resamples, before.resamples)
    assert RunDirectory(tmp_path / "run").finished
