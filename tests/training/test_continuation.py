"""Runs that go on after their end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlet.errors import RunError
from mlet.models.dlrm import DLRMConfig
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.observer import SilentObserver


def config(data: Path, **training: Any) -> RunConfig:
    settings = {
        "batch_size": 64,
        "threads": 1,
        "patience": None,
        "validate_every": 10_000,  # at the end of the last epoch alone
        **training,
    }
    return RunConfig(
        data=data,
        model=DLRMConfig(dim=4, inner_dim=12, bottom_mlp=[8], top_mlp=[8]),
        optimizer=OptimizersConfig.same("adam"),
        training=TrainingConfig(**settings),
    )


class Cut(SilentObserver):
    """Stops training, as Ctrl-C does, at a step."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, loss: float, rows: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def last_scores(run: Path) -> dict[str, float]:
    scores = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    del scores["seconds"]
    del scores["train_loss"]  # since the validation before, of which there is one more
    return scores


def test_a_finished_run_goes_on_to_the_numbers_of_a_longer_one(
    small_data: Path, tmp_path: Path
) -> None:
    train(config(small_data, epochs=3, keep_state=True), tmp_path / "long")
    train(config(small_data, epochs=1, keep_state=True), tmp_path / "run")
    summary = resume(tmp_path / "run", epochs=2)
    assert summary.epochs == 2
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run", Cut(5), epochs=3)
    assert not RunDirectory(tmp_path / "run").finished
    assert resume(tmp_path / "run").epochs == 3
    assert last_scores(tmp_path / "run") == last_scores(tmp_path / "long")
    assert RunDirectory(tmp_path / "run").config().training.epochs == 3
    # All is as in any finished run.
    assert resume(tmp_path / "run").epochs == 3


def test_an_unfinished_run_takes_another_number_of_epochs(small_data: Path, tmp_path: Path) -> None:
    train(config(small_data, epochs=2), tmp_path / "short")
    with pytest.raises(KeyboardInterrupt):
        train(config(small_data, epochs=9), tmp_path / "run", Cut(4))
    assert resume(tmp_path / "run", epochs=2).epochs == 2
    assert last_scores(tmp_path / "run") == last_scores(tmp_path / "short")


def test_the_state_is_removed_at_the_end_unless_it_is_to_be_kept(
    small_data: Path, tmp_path: Path
) -> None:
    for keep in (False, True):
        run = tmp_path / f"run-{keep}"
        train(config(small_data, epochs=1, keep_state=keep), run)
        assert (run / "checkpoints" / "last.pt").exists() is keep
        assert (run / "checkpoints" / "best.pt").exists()
    with pytest.raises(RunError, match=r"state to go on from was removed .*--set start="):
        resume(tmp_path / "run-False", epochs=2)
    assert resume(tmp_path / "run-False").epochs == 1, "it stays as it is"


def test_what_cannot_go_on_says_why(small_data: Path, tmp_path: Path) -> None:
    train(config(small_data, epochs=2, keep_state=True), tmp_path / "run")
    with pytest.raises(RunError, match=r"has had 2 epochs; --epochs 2 asks for no more"):
        resume(tmp_path / "run", epochs=2)
    early = config(small_data, epochs=50, patience=1, validate_every=5, keep_state=True)
    assert train(early, tmp_path / "early").stopped == "early"
    with pytest.raises(RunError, match=r"stopped early, in epoch \d+, .*training\.patience"):
        resume(tmp_path / "early", epochs=60)
    for run in ("run", "early"):
        assert RunDirectory(tmp_path / run).finished, "nothing was touched"
