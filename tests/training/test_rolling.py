"""Rolling training on real rows in the order of time, beside training again on all of them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from mlet.training import RunDirectory

ROOT = Path(__file__).parents[2]


def test_going_on_is_as_good_as_training_again_and_takes_less(
    tennis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small; benchmarks/rolling.py measures it in full."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("MLET_DATA", str(tennis.parents[1]))
    rolling = importlib.import_module("rolling")
    files = rolling.blocks_of(2021, 2023, 2, tmp_path / "rows", every=3)
    settings = {
        "model": {"name": "dlrm", "dim": 4, "bottom_mlp": [8], "top_mlp": [16]},
        "training": {"batch_size": 256, "threads": 1, "keep_state": True, "epochs": 3},
    }
    answers = rolling.measure(files, tmp_path, 1, settings)
    auc = {arm: values[0][0] for arm, values in answers.auc.items()}
    assert auc["retrained"] > 0.6
    # 3 000 rows are scored: the interval of a difference is some ±0.02.
    assert auc["rolling"] > auc["retrained"] - 0.03
    assert auc["once"] > auc["retrained"] - 0.03
    runs = {arm: RunDirectory(tmp_path / f"{arm}-1-0") for arm in ("retrained", "once")}
    steps = {arm: run.summary().steps for arm, run in runs.items()}
    assert steps["once"] < steps["retrained"] / 10
    assert sum(answers.processor["once"]) < sum(answers.processor["retrained"])
