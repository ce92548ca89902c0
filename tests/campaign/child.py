"""A command of mlet in a fork of this process, which has loaded and compiled all that it needs."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 120


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        code: its exit code; None if it hung, negative if a signal ended it.
        text: what was asked of it; its standard output by default, without the folder's name.
        last: the last line of standard error.
        seconds: how long it ran.
    """

    code: int | None
    text: str = ""
    last: str = ""
    seconds: float = 0.0


def warm_up() -> None:
    """Load what the commands load, and compile what they run, without a thread."""
    import matplotlib.figure  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import optuna.storages  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch
    import torch.onnx._internal.exporter._core

    import mlet.inspection
    import mlet.optim
    import mlet.studies
    from mlet import cli  # noqa: F401
    from mlet.nn import Bags, Field, FieldEmbedding

    torch.set_num_threads(1)
    assert mlet.inspection
    for bags in (False, True):
        layer = FieldEmbedding([Field("a", 9, 2, 4, multi_valued=bags), Field("b", 9, 2, 4)])
        optimizer = mlet.optim.FusedAdagrad(layer)
        given = {"a": Bags(torch.tensor([0]), torch.tensor([0, 1]))} if bags else None
        layer(torch.zeros(1, 2 - bags, dtype=torch.int64), given).sum().backward()
        optimizer.step()


def start(folder: Path, command: Sequence[str], report: Path) -> int:
    """Give a command in a folder, in a process group of its own; its number."""
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.chdir(folder)
            os.close(ready)
            os.close(begun)
            try:
                code, text, last = _call(command)
            except BaseException as error:
                code, text, last = 1, "", f"{type(error).__name__}: {error}"
            text = text.replace(str(folder.resolve()), "")
            report.write_text(f"{code}\0{text}\0{last}", errors="replace")
        finally:
            os._exit(0)
    os.close(begun)
    os.read(ready, 1)  # until it has a group of its own
    os.close(ready)
    return child


def finish(child: int, report: Path, patience: float = _PATIENCE) -> Ending:
    """Wait for a command; end it and all its workers where it does not end itself."""
    began = time.monotonic()
    while True:
        process, state = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - began
        if process:
            break
        if seconds > patience:
            kill_group(child)
            os.waitpid(child, 0)
            return Ending(None)
        time.sleep(0.002)
    if os.WIFSIGNALED(state):
        return Ending(-os.WTERMSIG(state))
    code, text, last = report.read_text().split("\0")
    return Ending(int(code), text, last, seconds)


def run(folder: Path, command: Sequence[str], outcome: Callable[[Path], str] | None) -> Ending:
    """Give a command, wait for it, and read what it left."""
    report = folder.with_name(folder.name + ".report")
    ending = finish(start(folder, command, report), report)
    if ending.code == 0 and outcome is not None:
        return Ending(0, outcome(folder), ending.last, ending.seconds)
    return ending


def kill_group(child: int) -> None:
    """Kill a command and its workers at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, 9)


def _call(command: Sequence[str]) -> tuple[int, str, str]:
    """``mlet`` in this process: exit code, standard output, the last line of standard error."""
    from mlet import cli
    from mlet.cli import console

    out, err = io.StringIO(), io.StringIO()
    console.output.file, console.errors.file = out, err
    sys.argv = ["mlet", *command]
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
    lines = err.getvalue().strip().splitlines() or [""]
    return int(str(code or 0)), out.getvalue(), lines[-1]
