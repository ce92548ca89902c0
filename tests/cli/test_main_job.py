"""The main job through the installed command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import nn

from mlet import convert
from mlet.cli import main
from mlet.cli.app import app
from mlet.cli.later import StandIn

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = ("--set", "cardinalities=[60,20,8]", "--set", "dense=2", "--rows", "2000")


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run the command in this process, which spares the start-up; its exit code."""
    monkeypatch.setattr(sys, "argv", ["mlet", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code


def test_prepare_train_evaluate_collapse(mlet: Mlet, tmp_path: Path) -> None:
    made = mlet("synthesize", "--out", "data", *SMALL)
    assert "best possible AUC" in made.stdout
    trained = mlet(
        "train", "data", "--out", "run", "--dim", 4, "--inner-dim", 16, "--optimizer", "adam",
        "--epochs", 2, "--batch-size", 100, "--set", "model.top_mlp=[8]",
    )  # fmt: skip
    assert "valid AUC" in trained.stdout
    assert (tmp_path / "run" / "model.safetensors").exists()
    evaluated = json.loads(mlet("evaluate", "run", "--json", "--bootstrap", 20).stdout)
    overall = evaluated["slices"][0]
    assert overall["rows"] == 400
    assert overall["auc"]["low"] <= overall["auc"]["value"] <= overall["auc"]["high"]
    assert evaluated["bayes"]["auc"] > overall["auc"]["value"]
    assert sum(entry["rows"] for entry in evaluated["slices"][1:]) == 400
    assert "calibration" in mlet("evaluate", "run", "--field", "C1", "--edges", "5,50").stdout
    collapsed = mlet("collapse", "run", "-o", "model.safetensors")
    assert "largest difference" in collapsed.stdout
    same = mlet("evaluate", "model.safetensors", "--data", "data", "--json", "--bootstrap", 20)
    again = json.loads(same.stdout)["slices"][0]
    assert again["logloss"]["value"] == pytest.approx(overall["logloss"]["value"], abs=1e-6)
    # Of equal scores rounding may put either first: no more than one pair of a click and a view.
    pair = 1.0 / (overall["clicks"] * (overall["rows"] - overall["clicks"]))
    assert again["auc"]["value"] == pytest.approx(overall["auc"]["value"], abs=1.01 * pair)
    resumed = mlet("train", "--resume", "run")
    assert resumed.stdout.splitlines()[0] == trained.stdout.splitlines()[0]


@pytest.mark.slow
def test_interrupted_training_says_how_to_continue(
    mlet: Mlet, mlet_command: Path, tmp_path: Path
) -> None:
    mlet("synthesize", "--out", "data", *SMALL)
    command = [mlet_command, "train", "data", "--out", "run", "--epochs", "400",
               "--batch-size", "50", "--set", "training.patience=null"]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().endswith("stopped; continue with: mlet train --resume run")
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    assert "run: the run is unfinished" not in mlet("evaluate", "run", "--bootstrap", 5).stderr


def test_compare(mlet: Mlet, tmp_path: Path) -> None:
    mlet("synthesize", "--out", "data", *SMALL)
    arguments = (
        "compare", "data", "--out", "cmp", "--dims", "2,4", "--inner-dims", "8,16", "--seeds", 2,
        "--learning-rate", "0.05", "--epochs", 1, "--json", "c.json", "--markdown", "c.md",
    )  # fmt: skip
    result = mlet(*arguments)
    assert "SLT and MLET" in result.stdout
    assert "report: cmp/report.html" in result.stdout
    values = json.loads((tmp_path / "c.json").read_text())
    assert [(arm["method"], arm["dim"], arm["inner_dim"]) for arm in values["arms"]] == [
        ("slt", 2, None), ("mlet", 2, 8), ("mlet", 2, 16),
        ("slt", 4, None), ("mlet", 4, 8), ("mlet", 4, 16),
    ]  # fmt: skip
    assert (tmp_path / "c.md").read_text().startswith("| method |")
    (tmp_path / "fm.yaml").write_text("data: data\nmodel: {name: fm}\n")
    small = ("--dims", 2, "--seeds", 1, "--lr", "0.05", "--epochs", 1)
    mlet("compare", "data", "--out", "fm", "--config", "fm.yaml", *small)
    assert "name: fm" in (tmp_path / "fm" / "compare.yaml").read_text(), "--config is not overruled"
    again = mlet(*arguments)
    assert again.stdout == result.stdout, "finished runs are not trained again"


def test_movielens_and_criteo(mlet: Mlet, movielens: Path, criteo_sample: Path) -> None:
    assert "80,004" in mlet("prepare", "movielens", movielens, "--out", "ml").stdout
    assert "800" in mlet("prepare", "criteo", criteo_sample, "--out", "cr").stdout
    mlet("train", "cr", "--out", "run", "--preset", "criteo-kaggle", "--set", "model.dim=4")
    mlet("evaluate", "run", "--bootstrap", 5)


def test_libfm_pooled_or_with_its_published_splits(mlet: Mlet, tmp_path: Path) -> None:
    rows = "".join(f"{1 if i % 3 else -1} {i % 7}:1 {10 + i % 4}:1\n" for i in range(60))
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.libfm").write_text(rows)
    rare = ("--min-count", 2, "--min-count", "field_1=20")
    pooled = mlet("prepare", "libfm", "a.libfm", "b.libfm", "--out", "pooled", *rare)
    fields = json.loads((tmp_path / "pooled" / "schema.json").read_text())["fields"]
    assert [field["min_count"] for field in fields] == [20, 2]
    assert "96" in pooled.stdout
    published = ("--train-file", "a.libfm", "--valid-file", "b.libfm", "--test-file", "c.libfm")
    assert "60" in mlet("prepare", "libfm", *published, "--out", "given").stdout
    refused = mlet("prepare", "libfm", "a.libfm", *published[:2], "--out", "x", code=2)
    assert "give either FILES, or all of" in refused.stderr


def test_table_and_config_files(mlet: Mlet, tmp_path: Path) -> None:
    lines = [f"{i % 2},{i % 5},u{i % 9},a|b" for i in range(200)]
    (tmp_path / "clicks.csv").write_text("\n".join(["click,age,user,tags", *lines]) + "\n")
    (tmp_path / "schema.yaml").write_text(
        "label: click\ndense: [age]\ncategorical: [user]\nmulti_valued: {tags: '|'}\n"
    )
    mlet("prepare", "table", "clicks.csv", "--schema", "schema.yaml", "--out", "data")
    (tmp_path / "run.yaml").write_text(
        "data: data\nmodel: {dim: 2, inner_dim: 8}\ntraining: {epochs: 1}\n"
    )
    mlet("train", "--config", "run.yaml", "--out", "run")
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert "inner_dim: 8" in written
    assert "batch_size: 512" in written, "the configuration is complete"


def test_checkpoints_of_any_model_collapse(mlet: Mlet, tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"words": nn.Embedding(30, 4), "out": nn.Linear(4, 2)})

    plain, converted = model(), convert(model(), inner_dim=16)
    torch.save({"epoch": 3, "state_dict": converted.state_dict()}, tmp_path / "checkpoint.pt")
    said = mlet("collapse", "checkpoint.pt", "-o", "plain.safetensors").stdout
    assert "1 tables collapsed" in said
    plain.load_state_dict(load_file(tmp_path / "plain.safetensors"), strict=True)
    torch.testing.assert_close(plain["words"].weight, converted["words"].weight)
    mlet("collapse", "checkpoint.pt", "-o", "plain.pt")
    plain.load_state_dict(torch.load(tmp_path / "plain.pt"), strict=True)
    for arguments, message in (
        (("checkpoint.pt", "-o", "plain.pt"), "already exists"),
        (("plain.pt", "-o", "x.pt"), "plain.pt: nothing to collapse"),
        (("missing.pt", "-o", "x.pt"), "missing.pt: not a run"),
    ):
        assert message in mlet("collapse", *arguments, code=2).stderr
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    assert (
        "bad.pt: damaged (no file of torch's"
        in mlet("collapse", "bad.pt", "-o", "x.pt", code=2).stderr
    )


BAD_CRITEO = {
    "short row": ("\t".join(["0"] * 39), "line 2: 39 columns where 40 are expected"),
    "label": ("\t".join(["x", *["1"] * 39]), "line 2: column 'label' holds 'x'"),
    "integer": ("\t".join(["0", "9" * 40, *["1"] * 38]), "line 2: column 'I1' holds '9999"),
}


@pytest.mark.parametrize("case", [*BAD_CRITEO, "empty", "binary", "missing"])
def test_bad_files_give_one_line_and_leave_nothing(
    mlet: Mlet, tmp_path: Path, case: str, criteo_sample: Path
) -> None:
    path = tmp_path / "train.txt"
    if case in BAD_CRITEO:
        row, message = BAD_CRITEO[case]
        first = criteo_sample.read_text().splitlines()[0]
        path.write_text(f"{first}\n{row}\n{first}\n")
    elif case == "empty":
        path.touch()
        message = "the file is empty"
    elif case == "binary":
        path.write_bytes(bytes(range(256)) * 100)
        message = "line 1: byte 0x00 is not UTF-8 text"
    else:
        message = "no such file"
    before = sorted(tmp_path.iterdir())
    result = mlet("prepare", "criteo", "train.txt", "--out", "data", code=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "train.txt" in errors[0]
    assert message in errors[0]
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere", "--out", "r"), "not a prepared data set"),
        (("train", "--out", "r"), "missing DATA"),
        (("train", "d"), "missing --out RUN"),
        (
            ("train", "d", "--out", "o", "--resume", "r"),
            "--resume RUN takes everything from the run",
        ),
        (("train", "d", "--out", "r", "--set", "training.epoch=3"), "did you mean 'epochs'?"),
        (("train", "d", "--out", "r", "--preset", "kaggle"), "no preset 'kaggle'"),
        (("train", "d", "--out", "r", "--model", "dlmr"), "'model.name'"),
        (("evaluate", "nowhere"), "no such file"),
        (("evaluate", "run[bold]"), "run[bold]: no such file"),
        (("collapse", "nowhere", "-o", "f"), "not a run"),
        (("compare", "d", "--out", "c", "--dims", "2;4"), "--dims '2;4': expected integers"),
        (("compare", "d", "--out", "c", "--lr", "1", "--learning-rates", "1"), "not both"),
        (("compare", "d", "--out", "c", "--dims", "0"), "'dims.0'"),
        (("compare", "d", "--out", "c", "--learning-rates", "0.1,0.1"), "is listed twice"),
        (("prepare", "criteo", "f", "--out", "d", "--min-count", "C1:3"), "expected N or FIELD=N"),
    ],
)
def test_bad_calls_exit_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, *arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def commands(command: object, name: str = "") -> Iterator[str]:
    """A command and all below it, however deep, by what is typed."""
    yield name
    if isinstance(command, StandIn):
        command = command.load()
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {word}".strip())


COMMANDS = list(commands(typer.main.get_command(app)))


def test_the_commands_are_found() -> None:
    assert {"", "prepare", "prepare table", "sweep", "inspect", "suggest-k"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    assert run_here(monkeypatch, *command.split(), "--help") == 0
    text = capsys.readouterr().out
    assert "Usage: mlet" in text
    assert len(text.splitlines()) > 8


def test_it_is_a_module_too() -> None:
    words = [sys.executable, "-m", "mlet", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "Usage: mlet [OPTIONS]" in done.stdout


def test_version(mlet: Mlet) -> None:
    assert mlet("--version").stdout.startswith("mlet 0.")
