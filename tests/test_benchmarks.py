"""``make bench`` measures every target; in small, so that only its shape is checked here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_targets_are_ratios_of_the_right_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fuxictr")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    targets = importlib.import_module("targets")
    embedding, training = targets.embedding, targets.training
    step = {
        embedding.OURS: 3.0,
        embedding.STOCK: 6.0,
        embedding.FBGEMM: 2.0,
        embedding.AUTHORS: 12.0,
    }
    monkeypatch.setattr(embedding, "measure", lambda setting, rounds: step)
    found = targets.embedding_step(2, targets.REFERENCE)
    assert [target.value for target in found] == [0.5, 1.5, 4.0]
    assert [target.meets(target.must) for target in found] == [True, True, True]
    assert [target.meets(target.aim) for target in found] == [True, False, False]
    step[embedding.OURS] = 6.0
    found = targets.embedding_step(2, targets.REFERENCE)
    assert [target.meets(target.must) for target in found] == [False, False, False]

    whole = {training.OURS: 2.2, training.OURS_SLT: 2.0, training.FUXICTR: 11.0}
    monkeypatch.setattr(training, "measure", lambda task, rounds: whole)
    dlrm, deepfm, wide = targets.training_step(2, targets.REFERENCE)
    assert [target.value for target in (dlrm, deepfm, wide)] == pytest.approx([1.1, 5.0, 5.0])
    monkeypatch.setattr(targets.prepare, "measure", lambda rows, rounds: {"mlet": 9, "FuxiCTR": 2})
    (speed,) = targets.preparation(10)
    assert speed.value == 4.5
    assert speed.as_row()["pass"] is True
    assert speed.as_row()["pass_aim"] is False


@pytest.mark.slow
def test_targets_are_measured_and_judged(tmp_path: Path) -> None:
    pytest.importorskip("fuxictr")
    answer = tmp_path / "bench.json"
    command = [
        sys.executable, ROOT / "benchmarks" / "targets.py",
        "--rounds", "2", "--rows", "3000", "--small", "--json", answer,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert answer.exists(), result.stdout + result.stderr
    rows = json.loads(answer.read_text())
    assert {"name", "value", "must", "aim", "pass"} <= set(rows[0])
    assert len(rows) == 28
    assert sum(row["must"] is not None for row in rows) == 18
    for row in rows:
        if row["must"] is not None:
            meets = row["value"] >= row["must"] if row["at_least"] else row["value"] <= row["must"]
            assert row["pass"] == meets
        assert row["name"].split(",")[0][:20] in " ".join(result.stdout.split())
    # A missed "must" fails the command.
    assert result.returncode == (0 if all(row["pass"] for row in rows) else 1)


def test_checksums_are_measured_beside_a_pass() -> None:
    command = [
        sys.executable, ROOT / "benchmarks" / "checksums.py", "--rows", "2000", "--rounds", "5",
    ]  # fmt: skip
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=280).stdout)
    assert found["ratio"] == pytest.approx(found["checksums_ms"] / found["one_pass_ms"])
    assert found["megabytes"] > 0


@pytest.mark.slow
def test_halving_is_measured_against_full_trials(tmp_path: Path) -> None:
    study = {
        "datasets": {"clicks": {"synthetic": {"rows": 3000}, "test": 0.2}},
        "models": {"dlrm": {"bottom_mlp": [8], "top_mlp": [8]}},
        "optimizers": ["adagrad"],
        "dims": [2],
        "inner_dims": [8],
        "seeds": 1,
        "tuning": {"trials": 6, "span": 64, "halving": {"factor": 2, "first": 1}},
        "training": {"epochs": 2, "batch_size": 128},
        "resamples": 10,
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    command = [sys.executable, ROOT / "benchmarks" / "halving.py", "study.yaml"]
    command += ["--out", "both", "--jobs", "2", "--json", "found.json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 < found["ratio"] < 1
    assert [row["arm"].rsplit("/", 1)[1] for row in found["arms"]] == ["slt-d2", "mlet-k8-d2"]
    assert all(row["given_up"] > 0 for row in found["arms"])
    # What full trials choose is at least as good on validation: they see all that the others see.
    assert all(row["full_valid"] >= row["halved_valid"] - 0.02 for row in found["arms"])


@pytest.mark.slow
def test_serving_is_measured_in_every_form(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    command = [
        sys.executable, ROOT / "benchmarks" / "serving.py",
        "--cap", "300", "--rounds", "20", "--json", "serving.json",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "serving.json").read_text())
    models = [row for row in found["rows"] if row["part"] == "model"]
    assert {row["batch"] for row in models} == {1, 64, 2_048}
    assert len(models) == 3 * len(found["memory"]) == 3 * 9
    for row in found["rows"]:
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["rows_per_second"] > 0
    files = {row["name"]: row["file_bytes"] for row in found["memory"]}
    kinds = ("", ", float16", ", int8", ", int4")
    sizes = [files[f"ONNX Runtime, collapsed MLET{kind}"] for kind in kinds]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(files["ONNX Runtime, single layer"], abs=200), "of equal d"
    assert all(row["peak_bytes"] > row["file_bytes"] for row in found["memory"])
    assert {row["form"] for row in found["ratios"]} == {"torch", ".pt2", "ONNX Runtime"}
    assert "collapsed MLET ÷ single layer" in result.stdout


@pytest.mark.slow
def test_bytes_between_processes_are_those_of_the_model(tmp_path: Path) -> None:
    pytest.importorskip("torchrec")
    answer = tmp_path / "scale.json"
    command = [
        sys.executable, ROOT / "benchmarks" / "scale.py",
        "--processes", "2", "--steps", "1", "--json", answer,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    rows = json.loads(answer.read_text())
    counted = {row["way"]: row["vectors"] for row in rows["measured"]}
    assert counted == {row["way"]: row["reckoned_vectors"] for row in rows["measured"]}
    assert counted["one layer"] * 4 == counted["two, d wide"] * 4 == counted["two, k wide"]
    assert all(row["seconds"] > 0 for row in rows["measured"])
    assert {row["workers"] for row in rows["reckoned"]} == {8, 16, 32, 64, 128}
    for whole, sharded in zip(rows["trainer"][::2], rows["trainer"][1::2], strict=True):
        assert (whole["tables"], sharded["tables"]) == ("whole", "sharded")
        assert whole["held"] > 1.9 * sharded["held"]
