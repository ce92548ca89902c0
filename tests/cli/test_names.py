"""Names of fields, files and folders are data: shown, written and printed as they are."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import mlet as library

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]

NAMES = ["1", "on", "it's", "a: b", "user[id]", "x[/y]", "../../../up", "geo/country"]


@pytest.fixture
def odd_run(mlet: Mlet, tmp_path: Path) -> Path:
    """A run whose fields have such names, in a folder of such a name."""
    folder = tmp_path / "a [v1]*" / "in" / "it's"
    folder.mkdir(parents=True)
    with (folder / "x.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["click", *NAMES])
        writer.writerows(
            [(row * 7919 >> 3) & 1, *(f"v{row * step % 12}" for step in range(3, 3 + len(NAMES)))]
            for row in range(900)
        )
    schema = {"label": "click", "categorical": NAMES}
    (folder / "schema.yaml").write_text(json.dumps(schema))
    mlet(
        "prepare", "table", folder / "x.csv", "--schema", folder / "schema.yaml", "-o", folder / "d"
    )
    words = ("--model", "fm", "--dim", 2, "--inner-dim", 8, "--epochs", 1)
    mlet("train", folder / "d", "--out", folder / "run", *words)
    return folder / "run"


def test_odd_names_go_through_every_command(mlet: Mlet, odd_run: Path, tmp_path: Path) -> None:
    folder = odd_run.parent
    shown = mlet(
        "inspect", odd_run, "-o", folder / "i.html", "--figures", folder / "figures"
    ).stdout
    assert all(name in shown for name in NAMES)
    figures = list(tmp_path.rglob("*reweighting.svg"))
    assert {path.parent for path in figures} == {folder / "figures"}
    assert len(figures) == 6  # the largest tables
    suggestion = mlet("suggest-k", odd_run).stdout
    assert all(name in suggestion for name in NAMES)
    option, setting = shlex.split(suggestion.splitlines()[-1])
    assert list(yaml.safe_load(setting.partition("=")[2])) == NAMES
    words = ("--model", "fm", "--dim", 2, "--inner-dim", 8, "--epochs", 1, option, setting)
    mlet("train", folder / "d", "--out", folder / "again", *words)
    mlet("collapse", odd_run, "-o", folder / "m.safetensors")
    assert "all" in mlet("evaluate", folder / "m.safetensors", "--data", folder / "d").stdout


def test_tables_of_a_checkpoint_are_shown_as_they_are_called(mlet: Mlet, tmp_path: Path) -> None:
    for name in ("x[/y]", "user[id]", "[bold]"):
        state = library.convert(nn.ModuleDict({name: nn.Embedding(30, 4)}), 8).state_dict()
        torch.save(state, tmp_path / "x.pt")
        assert f"│ {name} " in mlet("inspect", "x.pt", "-o", "i.html").stdout


def test_kernels_compile_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """As a package installed by somebody else, in a container without a home."""
    code = (
        "from numba.core.caching import CacheImpl\n"
        "def refuse(*a, **k): raise OSError('read-only')\n"
        "for kind in CacheImpl._locator_classes: kind.ensure_cache_path = refuse\n"
        "from mlet.engine.cpu import compile as compiled\n"
        "assert not compiled._CACHE\n"
        "import torch; from mlet.nn import Field, FieldEmbedding\n"
        "layer = FieldEmbedding([Field('a', 50, 4, 8)])\n"
        "print(layer(torch.tensor([[1]])).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "torch.Size([1, 1, 4])", done.stderr


def test_raw_files_of_a_study_that_changed_are_noticed(mlet: Mlet, tmp_path: Path) -> None:
    rows = [f"{row * 7919 >> 3 & 1},a{row % 9}" for row in range(900)]
    (tmp_path / "x.csv").write_text("\n".join(["click,url", *rows]))
    (tmp_path / "s.yaml").write_text("label: click\ncategorical: [url]\n")
    study = {
        "datasets": {"a": {"format": "table", "files": ["x.csv"], "schema_file": "s.yaml"}},
        "models": ["lr"], "optimizers": ["sgd"], "dims": [1], "seeds": 1,
        "tuning": {"trials": 1}, "training": {"epochs": 1}, "resamples": 5,
    }  # fmt: skip
    (tmp_path / "st.yaml").write_text(yaml.safe_dump(study))
    mlet("sweep", "st.yaml", "-o", "st", "--jobs", 1)
    good = (tmp_path / "x.csv").read_text()
    (tmp_path / "x.csv").write_text(good.replace("a3", "b3"))
    error = mlet("sweep", "st.yaml", "-o", "st", "--jobs", 1, code=2).stderr
    assert "x.csv: has changed since" in error
    (tmp_path / "x.csv").write_text(good)
    (tmp_path / "s.yaml").write_text("label: click\ncategorical: [url] # other\n")
    assert "s.yaml: has changed" in mlet("sweep", "st.yaml", "-o", "st", "--jobs", 1, code=2).stderr
    (tmp_path / "s.yaml").unlink()
    (tmp_path / "x.csv").unlink()  # put away: what was made of them is there
    mlet("sweep", "st.yaml", "-o", "st", "--jobs", 1)


def test_an_encoding_without_bars_and_names_is_no_error(
    mlet: Mlet, mlet_command: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "Γούτσα"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    mlet("synthesize", "--out", folder / "d", "--rows", 2000)
    words = ("--model", "fm", "--dim", "2", "--inner-dim", "4", "--epochs", "1")
    for command in (
        ["train", folder / "d", "--out", folder / "run", *words],
        ["inspect", folder / "run", "--out", folder / "page.html"],
        ["compare", "--help"],
    ):
        done = subprocess.run([mlet_command, *command], env=ascii_only, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
    assert (folder / "run" / "summary.json").exists()


def test_a_warning_is_one_line(mlet: Mlet, tmp_path: Path) -> None:
    mlet("synthesize", "--out", "d", "--rows", 2000)
    words = ("--model", "fm", "--dim", "4", "--inner-dim", "2", "--epochs", "1")
    told = mlet("train", "d", "--out", "run", *words).stderr
    (warning,) = [line for line in told.splitlines() if "restricts the table to rank 2" in line]
    assert warning.startswith("warning: fields ")
    assert ".py" not in told
