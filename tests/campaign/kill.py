"""Kill commands that write, at random moments; give them again, and compare what they leave.

    python tests/campaign/kill.py --kills 350 --seed 1

Each case kills one command with SIGKILL, alone or together with its workers, at some moment of its
usual time, and gives it (or its ``--resume``) again. Right is: what is there after the kill is
whole or not there, the repetition succeeds, and leaves the files and numbers of an uninterrupted
run, and no others (*same*); some commands had ended before the kill (*finished*). All else is a
fault: something *half-made*, a repetition that is *blocked*, *other numbers*, *left-overs*.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import child
import rounds
from outcomes import Outcome, both, bytes_of, numbers_of, run, study
from workshop import COMPARE, ONE_EPOCH

STATES = ("same", "finished", "half-made", "blocked", "other numbers", "left-overs")
FAULTS = STATES[2:]


def _again(command: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    return command


def _resume(command: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """A run that has a configuration is continued, another one is begun."""
    out = command[command.index("--out") + 1]
    begun = (folder / out / "config.yaml").exists()
    return ("train", "--resume", out) if begun else command


@dataclass(frozen=True)
class Subject:
    """A command that writes.

    Attributes:
        name: in the table.
        command: arguments of ``mlet``.
        made: what appears whole or not at all, as texts; the same as ``outcome`` of most commands.
        outcome: what it leaves, as a text to be compared.
        again: what is given after the kill.
    """

    name: str
    command: tuple[str, ...]
    outcome: Outcome
    made: tuple[str, ...] = ()
    again: Callable[[tuple[str, ...], Path], tuple[str, ...]] = _again


def _prepare(name: str, *words: str) -> Subject:
    return Subject(
        f"prepare {name}", ("prepare", name, *words, "--out", "new"), bytes_of("new"), ("new",)
    )


_TABLE = ("raw.csv", "--schema", "schema.yaml", "--split", "random")
SUBJECTS = (
    _prepare("table", *_TABLE),
    Subject(
        "prepare table --overwrite",
        ("prepare", "table", *_TABLE, "--seed", "1", "--out", "data", "--overwrite"),
        bytes_of("data"),
    ),
    _prepare("criteo", "criteo.tsv"),
    _prepare("avazu", "avazu.csv"),
    _prepare("libfm", "frappe.libfm"),
    _prepare("movielens", "films"),
    Subject(
        "synthesize", ("synthesize", "--out", "new", "--rows", "3000"), bytes_of("new"), ("new",)
    ),
    Subject(
        "synthesize --criteo-tsv",
        ("synthesize", "--preset", "criteo", "--criteo-tsv", "--out", "new.tsv", "--rows", "2000"),
        bytes_of("new.tsv"),
        ("new.tsv",),
    ),
    Subject(
        "train",
        ("train", "data", "--out", "new", *ONE_EPOCH, "--set", "training.checkpoint_every=2"),
        run("new"),
        again=_resume,
    ),
    Subject("train --resume", ("train", "--resume", "cut"), run("cut")),
    Subject(
        "collapse",
        ("collapse", "run", "-o", "out.safetensors", "--precision", "int8", "--overwrite"),
        bytes_of("out.safetensors"),
        ("out.safetensors",),
    ),
    Subject(
        "predict",
        ("predict", "run", "raw.csv", "raw.csv.gz", "--keep", "user", "-o", "new.parquet"),
        bytes_of("new.parquet"),
        ("new.parquet",),
    ),
    Subject("export", ("export", "run", "-o", "new.onnx"), bytes_of("new.onnx"), ("new.onnx",)),
    Subject(
        "inspect",
        ("inspect", "run", "--out", "page.html", "--figures", "figures"),
        bytes_of("page.html", "figures"),
    ),
    Subject(
        "compare",
        ("compare", "data", "--out", "new", *COMPARE, "--json", "c.json", "--markdown", "c.md"),
        both(study("new", "compare.json"), numbers_of("c.json")),
    ),
    Subject(
        "sweep",
        ("sweep", "study.yaml", "--out", "new", "--jobs", "2"),
        study("new", "study.json"),
    ),
)


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted command leaves.

    Attributes:
        text: its outcome.
        made: checksums of what appears whole or not at all.
        files: every file in the folder afterwards.
        seconds: how long it takes.
    """

    text: str
    made: dict[str, str]
    files: set[str]
    seconds: float


def uninterrupted(workshop: Path, subject: Subject) -> Whole:
    """Give the command twice, for what it leaves and for how long it takes once all is read."""
    seconds = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=workshop.parent) as name:
            folder = Path(name) / "work"
            shutil.copytree(workshop, folder)
            ending = child.run(folder, subject.command, subject.outcome)
            assert ending.code == 0, f"{subject.name} fails: {ending.last}"
            seconds.append(ending.seconds)
            found = Whole(
                ending.text,
                {made: bytes_of(made)(folder) for made in subject.made},
                _files(folder),
                min(seconds),
            )
    return found


def run_case(workshop: Path, subject: Subject, whole: Whole, seed: str) -> tuple[str, str]:
    """What became of one kill, and when it was made."""
    chance = random.Random(seed)
    moment, alone = chance.uniform(0, 0.97) * whole.seconds, chance.random() < 0.5
    how = f"killed after {moment:.3f} s, {'alone' if alone else 'with its workers'}"
    with tempfile.TemporaryDirectory(dir=workshop.parent) as name:
        folder = Path(name) / "work"
        shutil.copytree(workshop, folder)
        report = Path(name) / "report"
        process = child.start(folder, subject.command, report)
        time.sleep(moment)
        (os.kill if alone else os.killpg)(process, 9)
        os.waitpid(process, 0)
        for made, content in whole.made.items():
            if (folder / made).exists() and bytes_of(made)(folder) != content:
                return "half-made", f"{how}: {made}"
        if report.exists() and report.read_text().startswith("0\0"):
            return "finished", how
        if subject.made and all((folder / made).exists() for made in subject.made):
            state = "finished"  # all but the exit; given again, it would refuse to replace it
            text = subject.outcome(folder)
        else:
            ending = child.run(folder, subject.again(subject.command, folder), subject.outcome)
            if ending.code != 0:
                return "blocked", f"{how}: {ending.last}"
            state, text = "same", ending.text
        if text != whole.text:
            return "other numbers", how
        if _files(folder) != whole.files:
            return "left-overs", f"{how}: {sorted(_files(folder) ^ whole.files)[:3]}"
    return state, how


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


if __name__ == "__main__":
    rounds.main(
        __doc__.splitlines()[0], "kills", 350, SUBJECTS, uninterrupted, run_case, STATES, FAULTS
    )
