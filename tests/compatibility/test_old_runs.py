"""Runs, model files, comparisons and studies of mlet 0.1 give the numbers they gave then."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]


def close(found: Any, expected: Any, where: str = "") -> None:
    """The same tree, its numbers to rounding; entries may have been added."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            if key == "name" and "." not in where.removeprefix(".panels[0].slices"):
                continue  # ranges of counts are spelled in another way
            if "seconds" in key or key in ("machine", "study", "base"):
                continue  # what was measured, and what is spelled in today's way
            if key in ("low", "high") and where.endswith(".reduction") and found[key] is None:
                continue  # of these two seeds there is no interval any more
            close(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            close(mine, theirs, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7), where
    elif not where.endswith((".run", ".path", ".data")):
        assert found == expected, where


@pytest.mark.parametrize("run", ["run-mlet", "run-slt", "run-int8", "run-hash"])
def test_runs_score_as_they_did(mlet: Mlet, old: Path, run: str) -> None:
    expected = json.loads((old / f"{run}.json").read_text())
    close(json.loads(mlet("evaluate", run, "--bootstrap", 20, "--json").stdout), expected)


def test_model_files_score_as_they_did(mlet: Mlet, old: Path) -> None:
    for file, scores in (
        ("run-int8/model.safetensors", "model-int8.json"),
        ("model-mlet.safetensors", "run-mlet.json"),
        ("run-hash/model.safetensors", "run-hash.json"),
    ):
        words = ("evaluate", file, "--data", "data", "--bootstrap", 20, "--json")
        close(json.loads(mlet(*words).stdout), json.loads((old / scores).read_text()))


def test_an_unfinished_run_goes_on_to_the_same_numbers(mlet: Mlet, old: Path) -> None:
    def records(path: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: line[key] for key in line if key != "seconds"} for line in lines]

    mlet("train", "--resume", "run-unfinished")
    expected = records(old / "run-unfinished-metrics.jsonl")
    close(records(old / "run-unfinished" / "metrics.jsonl"), expected)
    mlet("evaluate", "run-unfinished")


def test_runs_can_be_used(mlet: Mlet, old: Path) -> None:
    mlet("collapse", "run-mlet", "--out", "again.safetensors")
    mlet("inspect", "run-mlet", "--baseline", "run-slt")
    mlet("suggest-k", "run-mlet")
    mlet("train", "--resume", "run-mlet")
    mlet("collapse", "converted.pt", "--out", "again.pt")
    expected = torch.load(old / "converted-collapsed.pt")
    found = torch.load(old / "again.pt")
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_the_run_of_other_data_is_refused(mlet: Mlet, old: Path) -> None:
    """0.1 kept a fingerprint of the schema, in the last checkpoint."""
    words = ("prepare", "table", "clicks.csv", "--schema", "clicks.yaml", "--out", "data")
    split = ("--split", "random", "--valid", 0.2, "--test", 0.3)
    mlet(*words, *split, "--seed", 5, "--overwrite")
    error = mlet("evaluate", "run-mlet", code=2).stderr
    assert "data is not the data set of run-mlet" in error
    mlet(*words, *split, "--overwrite")
    mlet("evaluate", "run-mlet")


@pytest.mark.slow
def test_a_comparison_is_left_alone(mlet: Mlet, old: Path) -> None:
    words = ("compare", "data", "--out", "comparison", "--model", "fm", "--dims", "2,4")
    words = (*words, "--inner-dims", 8, "--seeds", 2, "--learning-rates", "0.02,0.08")
    before = (old / "comparison" / "compare.yaml").read_bytes()
    error = mlet(*words, "--epochs", 1, code=2).stderr
    assert "holds a comparison of mlet 0.1" in error
    assert "choose another --out" in error
    assert (old / "comparison" / "compare.yaml").read_bytes() == before


@pytest.mark.slow
def test_a_study_goes_on(mlet: Mlet, old: Path) -> None:
    before = json.loads((old / "study.json").read_text())
    refused = mlet("sweep", "study.yaml", "--out", "study", "--jobs", 2, code=2).stderr
    assert "has other 'mlet, optimizers.adagrad' settings" in refused, "of the recipe"
    assert "sweep study/study.yaml --set mlet={} goes on with it" in refused
    mlet("sweep", "study/study.yaml", "--set", "mlet={}", "--out", "study", "--jobs", 2)
    after = json.loads((old / "study" / "study.json").read_text())
    assert set(before) <= set(after)
    close(after, before)
