"""Commands that are imported when they are called."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from mlet.cli.app import app
from mlet.cli.later import StandIn

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
