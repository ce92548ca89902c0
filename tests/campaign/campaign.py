"""Run commands on damaged files and count what becomes of them.

    python tests/campaign/campaign.py --cases 2000 --seed 1

Each case damages one file of a prepared data set, a run, a study or a model file, and gives a
command that reads it. Right are: an error of one line with exit code 2 (*refused*), or the output
of the undamaged file (*same*). Everything else is a fault: another output without a word
(*silent*), a *traceback*, a *hang*, a *signal*.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mutate import mutate

FAULTS = ("silent", "traceback", "hang", "signal")
_PATIENCE = 60


@dataclass(frozen=True)
class Subject:
    """Files to be damaged, and a command that reads them.

    Attributes:
        name: in the table.
        files: globs of what is damaged, from the workshop's folder.
        command: arguments of ``mlet``.
        outcome: what the command leaves, as a text to be compared; standard output if None.
    """

    name: str
    files: tuple[str, ...]
    command: tuple[str, ...]
    outcome: Callable[[Path], str] | None = None


def _weights(folder: Path) -> str:
    return str(zlib.crc32((folder / "new" / "model.safetensors").read_bytes()))


def _resumed(folder: Path) -> str:
    return str(zlib.crc32((folder / "cut" / "model.safetensors").read_bytes()))


_TRAIN = (
    "data", "--out", "new", "--model", "fm", "--dim", "2", "--inner-dim", "4", "--epochs", "1",
    "--batch-size", "64",
)  # fmt: skip
SUBJECTS = (
    Subject("data set, evaluate", ("data/**/*",), ("evaluate", "run", "--bootstrap", "3")),
    Subject("data set, train", ("data/**/*",), ("train", *_TRAIN), _weights),
    Subject("run, evaluate", ("run/**/*",), ("evaluate", "run", "--bootstrap", "3")),
    Subject("run, inspect", ("run/**/*",), ("inspect", "run", "--out", "page.html")),
    Subject("run, suggest-k", ("run/**/*",), ("suggest-k", "run")),
    Subject("run, collapse", ("run/**/*",), ("collapse", "run", "-o", "out.safetensors")),
    Subject("unfinished run, resume", ("cut/**/*",), ("train", "--resume", "cut"), _resumed),
    Subject(
        "model file, evaluate",
        ("model.safetensors",),
        ("evaluate", "model.safetensors", "--data", "data", "--bootstrap", "3"),
    ),
    Subject("checkpoint, inspect", ("any.pt",), ("inspect", "any.pt", "--out", "page.html")),
)


def make_workshop(folder: Path) -> None:
    """A small data set, a run, one that was interrupted, a model file and a checkpoint."""
    import torch

    from mlet import convert
    from mlet.data import SplitRule, prepare
    from mlet.data.readers import TableSchema, TableSource
    from mlet.training import RunConfig, train
    from mlet.training.collapse import collapse_run
    from mlet.training.loop import SilentObserver

    class Stop(SilentObserver):
        steps = 0

        def step(self, loss: float, rows: int) -> None:
            self.steps += 1
            if self.steps == 8:
                raise KeyboardInterrupt

    chance = random.Random(0)
    rows = ["click,user,tags,price"] + [
        f"{chance.randrange(2)},u{chance.randrange(40)},{'|'.join('abcd'[: chance.randrange(4)])},"
        f"{chance.randrange(90)}"
        for _ in range(900)
    ]
    (folder / "raw.csv").write_text("\n".join(rows))
    schema = TableSchema.parse(
        {
            "label": "click",
            "categorical": ["user"],
            "multi_valued": {"tags": "|"},
            "dense": ["price"],
        },
        "campaign",
    )
    prepare(TableSource([folder / "raw.csv"], schema), folder / "data", split=SplitRule())
    values = {
        "data": "data",
        "model": {"name": "fm", "dim": 2, "inner_dim": 4},
        "training": {"epochs": 1, "batch_size": 64, "threads": 1, "record_spectra": True},
    }
    os.chdir(folder)
    config = RunConfig.parse(values, "campaign")
    train(config, folder / "run")
    with contextlib.suppress(KeyboardInterrupt):
        train(config, folder / "cut", Stop())
    collapse_run(folder / "run", folder / "model.safetensors")
    model = convert(torch.nn.Sequential(torch.nn.Embedding(30, 2)), 4)
    torch.save({"state_dict": model.state_dict()}, folder / "any.pt")


def _call(command: tuple[str, ...]) -> tuple[int, str, str]:
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
    return int(code or 0), out.getvalue(), lines[-1]


def _warm_up() -> None:
    """Load what the commands load, and compile what they run, without a thread."""
    import matplotlib.figure  # noqa: F401
    import torch

    import mlet.inspection
    import mlet.optim
    from mlet.nn import Bags, Field, FieldEmbedding

    torch.set_num_threads(1)
    assert mlet.inspection
    for bags in (False, True):
        layer = FieldEmbedding([Field("a", 9, 2, 4, multi_valued=bags), Field("b", 9, 2, 4)])
        optimizer = mlet.optim.FusedAdagrad(layer)
        given = {"a": Bags(torch.tensor([0]), torch.tensor([0, 1]))} if bags else None
        layer(torch.zeros(1, 2 - bags, dtype=torch.int64), given).sum().backward()
        optimizer.step()


def run_case(workshop: Path, subject: Subject, expected: str | None, seed: str) -> tuple[str, str]:
    """What became of one damaged file, and how it was damaged.

    The command runs in a fork of this process, which has loaded and compiled all it needs.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "work"
        shutil.copytree(workshop, folder)
        how = "nothing"
        if expected is not None:
            files = sorted(f for glob in subject.files for f in folder.glob(glob) if f.is_file())
            file = chance.choice(files)
            how = f"{file.relative_to(folder)}: {mutate(file, files, chance)}"
        report = Path(name) / "report"
        child = os.fork()
        if child == 0:
            _child(folder, subject, report)
        state = _wait(child)
        if state is None:
            return "hang", how
        if os.WIFSIGNALED(state):
            return "signal", f"{how} ({os.WTERMSIG(state)})"
        code, text, last = report.read_text().split("\0")
    if expected is None:
        return ("same", text) if code == "0" else ("traceback", last)
    if code == "2" and last.startswith("error: "):
        return "refused", f"{how}: {last}"
    if code != "0":
        return "traceback", f"{how}: {last}"
    return ("same" if text == expected else "silent"), how


def _child(folder: Path, subject: Subject, report: Path) -> None:
    """Give the command and write down what it did; never returns."""
    os.chdir(folder)
    try:
        code, text, last = _call(subject.command)
        if code == 0 and subject.outcome is not None:
            text = subject.outcome(folder)
    except BaseException as error:
        code, text, last = 1, "", f"{type(error).__name__}: {error}"
    report.write_text(f"{code}\0{text.replace(str(folder), '')}\0{last}", errors="replace")
    os._exit(0)


def _wait(child: int) -> int | None:
    """The state in which a process ended; None if it had to be ended."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        process, state = os.waitpid(child, os.WNOHANG)
        if process:
            return state
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def campaign(
    cases: int, seed: int, show: bool = False
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts of outcomes by subject, and the faults in words."""
    counts: dict[str, Counter[str]] = {subject.name: Counter() for subject in SUBJECTS}
    faults = []
    with tempfile.TemporaryDirectory() as name:
        workshop = Path(name)
        # In a process of its own: Polars' and torch's threads would not survive a fork.
        maker = multiprocessing.get_context("spawn").Process(target=make_workshop, args=(workshop,))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
        _warm_up()
        for place, subject in enumerate(SUBJECTS):
            state, expected = run_case(workshop, subject, None, "")
            assert state == "same", f"{subject.name} fails on undamaged files: {expected}"
            for case in range(place, cases, len(SUBJECTS)):
                state, how = run_case(workshop, subject, expected, f"{seed}-{case}")
                counts[subject.name][state] += 1
                if state in FAULTS:
                    faults.append(f"{subject.name}, case {seed}-{case}: {state}: {how}")
                    if show:
                        print(faults[-1], flush=True)
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts, faults = campaign(options.cases, options.seed, show=True)
    states = ("refused", "same", *FAULTS)
    print("| subject | " + " | ".join(states) + " |")
    print("| --- |" + " --- |" * len(states))
    for name, found in counts.items():
        print(f"| {name} | " + " | ".join(str(found[state]) for state in states) + " |")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
