"""Whole or not at all: races, kills, signals, and what is left beside a file."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlet.atomic import atomic_directory, atomic_path, write_text
from mlet.errors import RunError, WriteError
from mlet.liveness import started

HOST = socket.gethostname()


def dead_process() -> str:
    """The number and the start of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = started(process.pid)
    process.communicate(b"\n")
    return f"{process.pid}-{began:.0f}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fill(out: Path, file: str, *meanwhile: str) -> None:
    """Make a directory with a file, while somebody else makes it with others."""
    with atomic_directory(out) as mine:
        (mine / file).write_text("mine")
        for other in meanwhile:
            with atomic_directory(out) as theirs:
                (theirs / other).write_text("theirs")


def test_a_directory_that_appeared_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunError, match="appeared meanwhile"):
        fill(out, "a", "b")
    assert names(tmp_path) == {"out"}
    assert (out / "b").read_text() == "theirs"
    with atomic_directory(out, overwrite=True) as mine:
        (mine / "a").write_text("mine")
    assert names(out) == {"a"}


def test_what_killed_processes_left_is_removed_and_what_others_use_is_not(tmp_path: Path) -> None:
    dead, alive = dead_process(), f"{os.getppid()}-{started(os.getppid()):.0f}"
    # As in a container that was started again, whose command has the number that it had before.
    earlier = f"{os.getpid()}-{started() - 60:.0f}"
    stale = [f".out.{dead}@{HOST}.x1.tmp", f".out.{earlier}@{HOST}.x2.tmp"]
    kept = [f".out.{alive}@{HOST}.x.tmp", f".out.{dead}@elsewhere.x.tmp", f".o.{dead}@{HOST}.x.tmp"]
    for name in (*stale, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("")
    (tmp_path / f".out.{dead}@{HOST}.x3.tmp").write_text("")
    write_text(tmp_path / "out", "text")
    assert names(tmp_path) == {"out", *kept}


def test_a_kill_while_a_directory_is_replaced_costs_nothing(tmp_path: Path) -> None:
    aside = tmp_path / f".out.{dead_process()}@{HOST}.x.old"
    (aside / "out").mkdir(parents=True)
    (aside / "out" / "a").write_text("old")
    with pytest.raises(RunError, match="already exists"), atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize(
    ("number", "asks"), [(errno.ENOSPC, True), (errno.EROFS, False), (errno.EACCES, False)]
)
def test_a_full_disk_is_suspected_where_it_may_be(tmp_path: Path, number: int, asks: bool) -> None:
    with pytest.raises(WriteError) as caught, atomic_path(tmp_path / "f"):
        raise OSError(number, os.strerror(number))
    assert ("is the disk full?" in str(caught.value)) is asks
    assert os.strerror(number) in str(caught.value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_prepare_leaves_nothing_behind(
    mlet_command: Path, tmp_path: Path, number: signal.Signals
) -> None:
    generator = random.Random(0)
    with (tmp_path / "clicks.csv").open("w") as file:
        file.write("click,user\n")
        file.writelines(
            f"{generator.randrange(2)},u{generator.randrange(50_000)}\n" for _ in range(400_000)
        )
    (tmp_path / "schema.yaml").write_text("label: click\ncategorical: [user]\n")
    command = [
        mlet_command, "prepare", "table", "clicks.csv", "--schema", "schema.yaml", "--out", "out",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # As in a terminal, even where the tests run under nohup.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else 0,
    )
    end = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*/.staging")) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    left = set(names(tmp_path)) - {"clicks.csv", "schema.yaml"}
    if number == signal.SIGKILL:
        assert all(name.startswith(f".out.{process.pid}-") for name in left)
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        assert set(names(tmp_path)) == {"clicks.csv", "schema.yaml", "out"}
    else:
        assert left == set()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
