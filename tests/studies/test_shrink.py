"""A search for the smallest model through the command line: numbers, a kill, errors."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlet.cli.app import app
from mlet.data import PreparedDataset
from mlet.errors import ConfigError, MletError, RunError
from mlet.export import load_collapsed
from mlet.metrics import score
from mlet.nn.compression import PRECISIONS
from mlet.nn.field_dims import field_dim
from mlet.studies.shrink.points import RESTRICTIONS, Point, smallest
from mlet.task import Binary
from mlet.training.predict import predict

TRIALS, SEEDS, TOLERANCE = 4, 2, 0.02
AUC = Binary().headline


DEEPFM = ("--model", "deepfm", "--set", "model.mlp=[8]")
#: The model that is searched where none is named: the only one with table biases, too.
DEFAULT = ("--set", "model.bottom_mlp=[8]", "--set", "model.top_mlp=[8]")


def words(data: Path, *more: object, model: tuple[str, ...] = DEEPFM) -> list[str]:
    return [
        "shrink", str(data), *model, "--reference-dim", "8", "--trials", str(TRIALS),
        "--seeds", str(SEEDS), "--epochs", "1", "--batch-size", "256", *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(
    small_data: Path, mlet_command: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A search that was killed and interrupted on the way."""
    folder = tmp_path_factory.mktemp("shrink")
    more = ("--tolerance", TOLERANCE, "--out", "out", "--jobs", 2)
    command = [str(mlet_command), *words(small_data, *more)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while len(list((folder / "out").rglob("summary.json"))) < TRIALS + 1:
        assert time.monotonic() < deadline
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    kept = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("summary.json")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What was chosen, by fresh seeds on test" in done.stdout
    assert "report: out/report.html" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing is trained twice"
    return folder / "out"


def numbers(finished: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((finished / "shrink.json").read_text())
    return found


@pytest.mark.slow
def test_every_arm_has_as_many_trials_at_every_precision(finished: Path) -> None:
    found = numbers(finished)
    for kind in ("slt", "single", "two-layer"):
        mine = [p for p in found["points"] if p["kind"] == kind]
        trials = {p["trial"] for p in mine}
        assert len(trials) + found["given_up"][kind] == TRIALS
        assert len(mine) == len(trials) * len(PRECISIONS)
    wide = {p["setting"].get("dim", 8) for p in found["points"]}
    assert max(wide) == 8
    assert len(wide) > 1
    falling = {p["setting"].get("dim_exponent", 0.0) for p in found["points"]}
    assert {0.0} <= falling <= {0.0, 0.1, 0.2, 0.3}


@pytest.mark.slow
def test_every_point_has_its_d_for_every_field(finished: Path, small_data: Path) -> None:
    found, schema = numbers(finished), PreparedDataset(small_data).schema
    sizes = {field.name: field.num_categories for field in schema.fields}
    for choice in (found["reference"], *found["choices"].values()):
        setting = choice["point"]["setting"]
        most, exponent = setting.get("dim", 8), setting.get("dim_exponent", 0.0)
        assert choice["field_dims"] == {
            name: field_dim(n, min(sizes.values()), most, exponent) for name, n in sizes.items()
        }
    # The bytes of float32 tables are those of the widths, and of a weight for each category beside.
    for point in found["points"]:
        setting = point["setting"]
        if point["precision"] != "float32" or setting.get("min_count", 1) > 1:
            continue
        dims = [
            field_dim(n, min(sizes.values()), setting.get("dim", 8), setting.get("dim_exponent", 0))
            for n in sizes.values()
        ]
        entries = sum(n * (dim + 1) for n, dim in zip(sizes.values(), dims, strict=True))
        assert point["bytes"] == 4 * entries


@pytest.mark.slow
def test_what_is_chosen_is_exact_on_the_recorded_trials(finished: Path) -> None:
    found = numbers(finished)
    points = [Point(**values) for values in found["points"]]
    slt = [p for p in points if p.kind == "slt" and p.precision == "float32"]
    reference = max(slt, key=lambda p: p.quality(AUC))
    assert Point(**found["reference"]["point"]) == reference
    assert found["bar"] == pytest.approx(reference.scores["auc"] - TOLERANCE)
    least = np.mean(found["reference"]["valid"]["auc"]) - TOLERANCE
    assert list(found["choices"]) == list(RESTRICTIONS)
    for name, choice in found["choices"].items():
        chosen = Point(**choice["point"])
        assert RESTRICTIONS[name](chosen)
        assert np.mean(choice["valid"]["auc"]) >= least, "fresh seeds confirm it"
        assert choice["times_smaller"] == pytest.approx(reference.bytes / chosen.bytes)
        # Nothing smaller was within the tolerance but what fresh seeds refuted: that was trained.
        allowed = [p for p in points if RESTRICTIONS[name](p)]
        first = smallest(allowed, AUC, found["bar"])
        assert first is not None
        assert first.bytes <= chosen.bytes
        if first.setting == chosen.setting:
            assert first == chosen
    sizes = {name: c["point"]["bytes"] for name, c in found["choices"].items()}
    assert sizes["all of it"] <= sizes["without two layers"] <= sizes["without either"]
    assert sizes["all of it"] <= sizes["without quantization"] <= sizes["without either"]


@pytest.mark.slow
def test_the_model_that_is_written_is_the_one_that_was_scored(
    finished: Path, small_data: Path
) -> None:
    found = numbers(finished)
    chosen = next(iter(found["choices"].values()))
    model, config, _ = load_collapsed(finished / "model.safetensors")
    assert model.embedding.precision == chosen["point"]["precision"]
    assert config.dim == chosen["point"]["setting"].get("dim", 8)
    assert {field.name: field.dim for field in model.embedding.fields} == chosen["field_dims"]
    columns = PreparedDataset(small_data).split("test")
    seed = found["model"]["seed"]
    assert seed in (1, 2), "trials have seed 0"
    assert max(chosen["valid"]["auc"]) == chosen["valid"]["auc"][seed - 1]
    expected = chosen["test"]["auc"][seed - 1]
    assert score(columns.labels["label"], predict(model, columns)).auc == pytest.approx(expected)
    # The bytes that are counted are those of the tables in the file, and of nothing else.
    tensors = load_file(finished / "model.safetensors")
    tables = {
        name: tensor.nbytes
        for name, tensor in tensors.items()
        if name.startswith(("embedding.", "first_order.tables."))
    }
    assert sum(tables.values()) == chosen["point"]["bytes"] == model.table_bytes()
    served = sum(t.nbytes for name, t in tensors.items() if not name.startswith("vocabulary."))
    assert served == chosen["point"]["model_bytes"]


@pytest.mark.slow
def test_the_page_and_the_table_say_it(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for text in ("Bytes against AUC", "Bytes against logloss", "What each part is worth"):
        assert text in page
    assert page.count('role="img" aria-label="validation ') == 2
    assert "prefers-color-scheme: dark" in page
    assert re.findall(r"(?:src|href)=\"(?!#)", page) == []
    lines = (finished / "tables.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["the reference", *RESTRICTIONS]
    assert (finished / "pareto-auc.svg").exists()
    assert (finished / "pareto-logloss.svg").exists()


@pytest.mark.slow
def test_bytes_are_given_in_the_place_of_a_tolerance(
    small_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--max-bytes", "6KiB", "--out", "out", "--jobs", 2, "--onnx")
    few = ("--trials", "2", "--seeds", "1")
    app(words(small_data, *more, *few, model=DEFAULT), standalone_mode=False)
    found = numbers(tmp_path / "out")
    biases = {p["setting"].get("table_bias") for p in found["points"] if p["kind"] != "slt"}
    assert biases == {0, 1}
    assert found["bar"] is None
    fit = [p for p in found["points"] if p["bytes"] <= 6 * 1024]
    best = max(p["scores"]["auc"] for p in fit)
    chosen = found["choices"]["all of it"]["point"]
    assert chosen["scores"]["auc"] == best
    assert chosen["bytes"] <= 6 * 1024
    assert (tmp_path / "out" / "model.onnx").exists()
    assert "model: out/model.onnx" in capsys.readouterr().out
    other = words(small_data, "--max-bytes", "7KiB", "--out", "out", *few, model=DEFAULT)
    with pytest.raises(RunError, match="the study in out has other 'max_bytes' settings; choose"):
        app(other, standalone_mode=False)


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        (("--tolerance", "0.1", "--max-bytes", "1M"), ConfigError, "--tolerance or --max-bytes"),
        (("--tolerance", "-1"), ConfigError, "--tolerance -1.0: expected a number above 0"),
        (("--max-bytes", "few"), ConfigError, "--max-bytes 'few': expected a size, as 512M"),
        (("--max-bytes", "100"), ConfigError, r"no model of the search has tables of 100 B \(100 "),
        (("--model", "deepfn"), MletError, "no model 'deepfn'"),
        (
            ("--set", "model.compression={name: hashing}"),
            ConfigError,
            "model.compression: 'hashing' is another way to smaller tables; leave it out",
        ),
        (("--set", "model.mlp=[wide]"), ConfigError, "model.mlp"),
        # What is searched is nothing that the reference may have, and a search writes no logs.
        (("--set", "model.dim_exponent=0.1"), ConfigError, "model.dim_exponent: d by field is sea"),
        (("--set", "model.field_dims={C1: 2}"), ConfigError, "model.field_dims: d by field is se"),
        (("--set", "model.min_count=3"), ConfigError, "model.min_count: is searched, and the ref"),
        (("--set", "log=[tensorboard]"), ConfigError, "log: is of single runs"),
        (("--set", "grow.run=run"), ConfigError, "start, grow: trials begin on their own"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_is_trained(
    more: tuple[str, ...], error: type[MletError], says: str, small_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        app([*words(small_data), *more, "--out", str(tmp_path / "out")], standalone_mode=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_reference_that_cannot_be_trained_ends_the_search(
    small_data: Path, tmp_path: Path
) -> None:
    hot = ("--optimizer", "sgd", "--set", "optimizer.tables.learning_rate=1e30", "--trials", "1")
    with pytest.raises(
        RunError, match=r"the reference of d = 8 cannot be trained: .*learning_rate"
    ):
        app([*words(small_data), *hot, "--out", str(tmp_path / "out")], standalone_mode=False)
