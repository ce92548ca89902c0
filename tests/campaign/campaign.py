"""Run commands on damaged files and count what becomes of them.

    python tests/campaign/campaign.py --cases 2000 --seed 1

Each case damages one file and gives a command that reads it. Right are: an error of one line with
exit code 2 (*refused*), and the output of the undamaged file (*same*). Of raw files and settings,
which anybody may change and no checksum covers, other output is right too (*other data*). All else
is a fault: another output without a word (*silent*), a *traceback*, a *hang*, a *signal*.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import child
import rounds
from mutate import mutate
from outcomes import Outcome, bytes_of, study
from workshop import COMPARE, ONE_EPOCH

STATES = ("refused", "same", "other data", "silent", "traceback", "hang", "signal")
FAULTS = STATES[3:]


@dataclass(frozen=True)
class Subject:
    """Files to be damaged, and a command that reads them.

    Attributes:
        name: in the table.
        files: globs of what is damaged, from the workshop's folder.
        command: arguments of ``mlet``.
        outcome: what the command leaves, as a text to be compared; standard output if None.
        free: whether the files are the user's to change.
    """

    name: str
    files: tuple[str, ...]
    command: tuple[str, ...]
    outcome: Outcome | None = None
    free: bool = False


def _raw(name: str, files: tuple[str, ...], *words: str) -> Subject:
    return Subject(name, files, ("prepare", *words, "--out", "new"), bytes_of("new"), free=True)


def _table(file: str) -> Subject:
    words = ("table", file, "--schema", "schema.yaml", "--split", "random")
    return _raw(f"{file}, prepare table", (file,), *words)


SUBJECTS = (
    Subject("data set, evaluate", ("data/**/*",), ("evaluate", "run", "--bootstrap", "3")),
    Subject(
        "data set, train",
        ("data/**/*",),
        ("train", "data", "--out", "new", *ONE_EPOCH),
        bytes_of("new/model.safetensors"),
    ),
    Subject("run, evaluate", ("run/**/*",), ("evaluate", "run", "--bootstrap", "3")),
    Subject(
        "run, inspect",
        ("run/**/*",),
        ("inspect", "run", "--out", "page.html", "--figures", "figures"),
        bytes_of("page.html", "figures"),
    ),
    Subject("run, suggest-k", ("run/**/*",), ("suggest-k", "run")),
    Subject(
        "run, collapse",
        ("run/**/*",),
        ("collapse", "run", "-o", "out.safetensors"),
        bytes_of("out.safetensors"),
    ),
    Subject(
        "unfinished run, resume",
        ("cut/**/*",),
        ("train", "--resume", "cut"),
        bytes_of("cut/model.safetensors"),
    ),
    Subject(
        "model file, evaluate",
        ("model.safetensors",),
        ("evaluate", "model.safetensors", "--data", "data", "--bootstrap", "3"),
    ),
    Subject(
        "model file, predict",
        ("model.safetensors",),
        ("predict", "model.safetensors", "raw.csv", "-o", "scores.csv"),
        bytes_of("scores.csv"),
    ),
    Subject(
        "raw.parquet, predict",
        ("raw.parquet",),
        ("predict", "model.safetensors", "raw.parquet", "-o", "scores.csv"),
        bytes_of("scores.csv"),
        free=True,
    ),
    Subject("checkpoint, inspect", ("any.pt",), ("inspect", "any.pt", "--out", "page.html")),
    Subject(
        "comparison, compare again",
        ("compared/**/*",),
        ("compare", "data", "--out", "compared", *COMPARE),
        study("compared", "compare.json"),
    ),
    Subject(
        "study, sweep again",
        ("swept/*", "swept/data/**/*", "swept/**/*"),
        ("sweep", "study.yaml", "--out", "swept", "--jobs", "1"),
        study("swept", "study.json"),
    ),
    _table("raw.csv"),
    _table("raw.csv.gz"),
    _table("raw.parquet"),
    _raw("criteo.tsv, prepare criteo", ("criteo.tsv",), "criteo", "criteo.tsv"),
    _raw("avazu.csv, prepare avazu", ("avazu.csv",), "avazu", "avazu.csv"),
    _raw("frappe.libfm, prepare libfm", ("frappe.libfm",), "libfm", "frappe.libfm"),
    _raw("films, prepare movielens", ("films/*",), "movielens", "films"),
    _raw(
        "schema.yaml, prepare table",
        ("schema.yaml",),
        *("table", "raw.csv", "--schema", "schema.yaml", "--split", "random"),
    ),
    Subject(
        "run.yaml, train",
        ("run.yaml",),
        ("train", "data", "--out", "new", "--config", "run.yaml"),
        bytes_of("new/model.safetensors"),
        free=True,
    ),
    Subject(
        "study.yaml, sweep",
        ("study.yaml",),
        ("sweep", "study.yaml", "--out", "swept", "--jobs", "1"),
        free=True,
    ),
)


def run_case(workshop: Path, subject: Subject, expected: str, seed: str) -> tuple[str, str]:
    """What became of one damaged file, and how it was damaged."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=workshop.parent) as name:
        folder = Path(name) / "work"
        shutil.copytree(workshop, folder)
        files = sorted(
            {file for glob in subject.files for file in folder.glob(glob) if file.is_file()}
        )
        file = chance.choice(files)
        how = f"{file.relative_to(folder)}: {mutate(file, files, chance)}"
        ending = child.run(folder, subject.command, subject.outcome)
    if ending.code is None:
        return "hang", how
    if ending.code < 0:
        return "signal", f"{how} ({-ending.code})"
    if ending.code == 2 and ending.last.startswith("error: "):
        return "refused", f"{how}: {ending.last}"
    if ending.code != 0:
        return "traceback", f"{how}: {ending.last}"
    if ending.text == expected:
        return "same", how
    return ("other data" if subject.free else "silent"), how


def undamaged(workshop: Path, subject: Subject) -> str:
    """What the command leaves of whole files; the same twice, or nothing can be compared."""
    texts = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=workshop.parent) as name:
            folder = Path(name) / "work"
            shutil.copytree(workshop, folder)
            ending = child.run(folder, subject.command, subject.outcome)
        assert ending.code == 0, f"{subject.name} fails on undamaged files: {ending.last}"
        texts.append(ending.text)
    assert texts[0] == texts[1], f"{subject.name} does not leave the same twice"
    return texts[0]


if __name__ == "__main__":
    rounds.main(
        __doc__.splitlines()[0], "cases", 2000, SUBJECTS, undamaged, run_case, STATES, FAULTS
    )
