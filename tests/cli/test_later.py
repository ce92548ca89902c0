"""Commands that are imported when they are called."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from mlet.cli.app import app
from mlet.cli.later import StandIn
from mlet.cli.train import train

COMMANDS: dict[str, StandIn] = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_said_of_a_command_is_what_it_says_itself(name: str) -> None:
    command = COMMANDS[name]
    itself = command.load()
    assert itself.name == name
    own = " ".join(itself.help.split())
    assert own.startswith(command.help), "the summary in app.py and the help of the command"
    assert command.help[-1] in ".?", "a whole sentence"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["no-such-command"], []])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['mlet', *{words!r}]\n"
        "from mlet.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'numba', 'polars', 'scipy'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_a_misspelt_command_is_guessed() -> None:
    words = [sys.executable, "-m", "mlet", "trian"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Did you mean 'train'?" in done.stderr


def test_the_package_shows_all_it_has_before_it_is_imported() -> None:
    code = (
        "import sys, mlet\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(mlet.__all__) <= set(dir(mlet))\n"
        "assert all(getattr(mlet, name) is not None for name in mlet.__all__)\n"
        "from mlet import *\n"
        "assert convert is mlet.surgery.convert is mlet.convert\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_the_package_does_not_have() -> None:
    import mlet

    with pytest.raises(AttributeError, match="module 'mlet' has no attribute 'nosuch'"):
        mlet.nosuch  # noqa: B018


def test_the_help_of_training_shows_what_is_not_said(small_data: Path, tmp_path: Path) -> None:
    """A run of which nothing is said but where it is has what ``--help`` shows."""
    command = COMMANDS["train"].load()
    context = command.make_context("train", ["--out", "run"])
    said = {one.opts[0]: one.get_help_record(context)[1] for one in command.params}
    shown = {name: re.search(r"default: \(([^)]*)\)", text) for name, text in said.items()}
    train(small_data, tmp_path / "run")
    run = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    tables, dense = run["optimizer"]["tables"], run["optimizer"]["dense"]
    rates = f"{tables['learning_rate']} and {dense['learning_rate']}"
    for option, value in {
        "--model": run["model"]["name"],
        "--dim": run["model"]["dim"],
        "--optimizer": tables["name"],
        "--epochs": run["training"]["epochs"],
        "--batch-size": run["training"]["batch_size"],
        "--seed": run["training"]["seed"],
    }.items():
        found = shown[option]
        assert found is not None, option
        assert found[1] == str(value), option
    found = shown["--learning-rate"]
    assert found is not None
    assert f"{tables['name']} {rates};" in found[1]
    assert shown["--inner-dim"] is not None
    assert shown["--inner-dim"][1] == "auto"
    assert any(run["model"]["inner_dims"].values()), "auto has become numbers"
