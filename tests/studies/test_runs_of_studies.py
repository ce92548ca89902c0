"""Runs of a study that were interrupted, moved, or damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mlet.errors import RunError
from mlet.models import DLRMConfig
from mlet.studies import StudyConfig, sweep
from mlet.studies.runs import Outcome, read_test_scores, score_run, train_and_score
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.observer import SilentObserver


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


@pytest.mark.parametrize("lost", ["folder", "model", "all"])
def test_finished_runs_that_are_gone_are_trained_again(
    small_data: Path, tmp_path: Path, lost: str
) -> None:
    study = StudyConfig.parse(
        {
            "datasets": {"d": {"prepared": str(small_data)}},
            "models": {"lr": {}},
            "optimizers": ["sgd"],
            "dims": [1],
            "seeds": 2,
            "tuning": {"trials": 1},
            "training": {"epochs": 1},
            "resamples": 3,
        },
        "test",
    )
    before = sweep(study, tmp_path, jobs=1).panels[0].arms[0]
    run, other = before.predictions
    stamp = (other / "summary.json").stat().st_mtime_ns
    if lost == "model":
        (run / "model.safetensors").unlink()
        (run / "test.npz").unlink()
    else:
        shutil.rmtree(run if lost == "folder" else tmp_path / "runs")
    for _ in range(2):
        after = sweep(study, tmp_path, jobs=1).panels[0].arms[0]
        assert [one.test for one in after.runs] == [one.test for one in before.runs]
    if lost != "all":
        assert (other / "summary.json").stat().st_mtime_ns == stamp


def test_swapped_files_of_a_study_are_noticed(small_data: Path, tmp_path: Path) -> None:
    study = StudyConfig.parse(
        {
            "datasets": {"d": {"prepared": str(small_data)}},
            "models": {"fm": {}},
            "optimizers": ["sgd"],
            "dims": [1, 2],
            "seeds": 2,
            "tuning": {"learning_rates": [0.1]},
            "training": {"epochs": 1},
            "resamples": 3,
        },
        "test",
    )
    first, second = (arm.predictions for arm in sweep(study, tmp_path, jobs=1).panels[0].arms)
    kept = (first[0] / "test.npz").read_bytes()
    for other in (first[1], second[0]):
        shutil.copy(other / "test.npz", first[0] / "test.npz")
        with pytest.raises(RunError, match=r"seed0/test\.npz: damaged \(of another run\)"):
            sweep(study, tmp_path, jobs=1)
    (first[0] / "test.npz").write_bytes(kept)
    sweep(study, tmp_path, jobs=1)
    shutil.rmtree(first[0])
    shutil.copytree(second[0], first[0])
    with pytest.raises(RunError, match="seed0 holds a run with other settings; put back the one"):
        sweep(study, tmp_path, jobs=1)
