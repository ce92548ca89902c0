"""Weights know what they belong to: no command lets them meet data whose ids mean other things."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlet.data import PreparedDataset
from mlet.data.vocabulary import digest_categories
from mlet.errors import DataError
from mlet.reading import read_sealed, write_sealed
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.load import load_trained
from mlet.training.observer import SilentObserver

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]  # noqa: F821

SMALL = ("--epochs", 1, "--set", "model.mlp=[4]", "--set", "training.threads=1")


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """A file whose two fields have the same number of categories."""
    draw = random.Random(1)
    lines = ["click,price,user,film"]
    for row in range(600):
        user, film = (row if row < 20 else int(20 * draw.random() ** 2) for _ in range(2))
        lines.append(f"{int(draw.random() < 0.5)},{draw.randrange(9)},c{user},c{film}")
    (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "clicks.csv"


def prepare(mlet: Mlet, clicks: Path, out: str, *options: object, fields: str = "user, film"):
    schema = clicks.parent / f"{out}.yaml"
    schema.write_text(f"label: click\ndense: [price]\ncategorical: [{fields}]\n")
    mlet(
        "prepare", "table", clicks, "--schema", schema, "--out", out, "--split", "random", *options
    )


@pytest.mark.slow
def test_no_command_takes_other_data(mlet: Mlet, clicks: Path, tmp_path: Path) -> None:
    prepare(mlet, clicks, "data", "--seed", 1)
    mlet("train", "data", "--out", "run", "--inner-dim", 8, "--dim", 2, "--model", "deepfm", *SMALL)
    mlet("collapse", "run", "--out", "m.safetensors")
    compare = ("compare", "data", "--out", "cmp", "--dims", 2, "--inner-dims", 4, "--jobs", 1)
    compare = (*compare, "--learning-rates", 0.02, "--seeds", 1, "--model", "deepfm", *SMALL)
    mlet(*compare)
    report = (tmp_path / "cmp" / "compare.json").read_bytes()

    # Where the data set was: prepared again, with another split.
    prepare(mlet, clicks, "data", "--seed", 2, "--overwrite")
    for words in (
        ("evaluate", "run"),
        ("evaluate", "m.safetensors", "--data", "data"),
        ("collapse", "run", "--out", "again.safetensors"),
        ("inspect", "run"),
        ("suggest-k", "run"),
        ("train", "--resume", "run"),
        compare,
    ):
        error = mlet(*words, code=2).stderr
        assert "data is not the data set of" in error, (words, error)
        assert "of field 'user' stand for other categories" in error, (words, error)
    assert (tmp_path / "cmp" / "compare.json").read_bytes() == report
    assert not (tmp_path / "again.safetensors").exists()

    # Two columns swapped: tables of equal shape change places.
    prepare(mlet, clicks, "swapped", "--seed", 1, fields="film, user")
    for words in (
        ("evaluate", "run"),
        ("evaluate", "m.safetensors"),
        ("collapse", "run", "--out", "again.safetensors"),
        ("inspect", "run"),
        ("suggest-k", "run"),
    ):
        error = mlet(*words, "--data", "swapped", code=2).stderr
        assert "its fields are film, user, trained on were user, film" in error, (words, error)

    # The same data prepared again, elsewhere, is the data set; all commands take it by name.
    prepare(mlet, clicks, "same", "--seed", 1)
    for words in (
        ("evaluate", "run"),
        ("evaluate", "m.safetensors"),
        ("collapse", "run", "--out", "again.safetensors"),
        ("inspect", "run"),
        ("suggest-k", "run"),
    ):
        mlet(*words, "--data", "same")
    # And where it was.
    prepare(mlet, clicks, "data", "--seed", 1, "--overwrite")
    mlet("evaluate", "run")
    mlet(*compare)


def test_a_baseline_on_other_data_is_refused(mlet: Mlet, clicks: Path) -> None:
    for seed in (1, 2):
        prepare(mlet, clicks, f"data{seed}", "--seed", seed)
        mlet("train", f"data{seed}", "--out", f"run{seed}", "--inner-dim", 40, *SMALL[:2])
    error = mlet("inspect", "run1", "--baseline", "run2", code=2).stderr
    assert "data1 is not the data set of run2: the ids of field 'user' stand for" in error


def test_other_rows_with_the_same_vocabulary_must_be_named(mlet: Mlet, clicks: Path) -> None:
    """The test split where the run's data was may hold rows of the run's training."""
    lines = clicks.read_text().splitlines()
    prepare(mlet, clicks, "data", "--split", "order")
    mlet("train", "data", "--out", "run", "--dim", 2, *SMALL[:2])
    # Validation and test rows change places: no vocabulary changes.
    clicks.write_text("\n".join([lines[0], *lines[1:481], *lines[541:], *lines[481:541]]) + "\n")
    prepare(mlet, clicks, "data", "--split", "order", "--overwrite")
    error = mlet("evaluate", "run", code=2).stderr
    assert "its rows or their split are others" in error
    assert "--data" in error
    mlet("evaluate", "run", "--data", "data")


def test_a_checkpoint_of_another_run_is_refused(mlet: Mlet, clicks: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        prepare(mlet, clicks, f"data{seed}", "--seed", seed)
        mlet("train", f"data{seed}", "--out", f"run{seed}", "--dim", 2, *SMALL[:2])
    best = tmp_path / "run1" / "checkpoints" / "best.pt"
    best.write_bytes((tmp_path / "run2" / "checkpoints" / "best.pt").read_bytes())
    assert "best.pt: a checkpoint of another run" in mlet("inspect", "run1", code=2).stderr
    model = tmp_path / "run1" / "model.safetensors"
    model.write_bytes((tmp_path / "run2" / "model.safetensors").read_bytes())
    for command in (("evaluate", "run1"), ("predict", "run1", "clicks.csv", "-o", "scores.csv")):
        complaint = mlet(*command, code=2).stderr
        assert "model.safetensors: is not the model of run1: " in complaint


def test_a_run_goes_on_with_the_same_data_under_another_name(
    small_data: Path, tmp_path: Path
) -> None:
    """Its checkpoints stay its own, though the schema names another source now."""

    class Stop(SilentObserver):
        steps = 0

        def step(self, loss: float, rows: int) -> None:
            self.steps += 1
            if self.steps == 25:
                raise KeyboardInterrupt

    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    values = {"batch_size": 64, "epochs": 2, "threads": 1, "patience": None}
    # Nothing moves, so no validation is better than the first: the best checkpoint is from before
    # the stop, and is read at the end.
    still = {"learning_rate": 1e-30}
    config = RunConfig.parse(
        {
            "data": str(data),
            "model": {"name": "fm", "dim": 2},
            "optimizer": {"tables": still, "dense": still},
            "training": values,
        },
        "test",
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", Stop())
    schema = read_sealed(data / "schema.json", DataError, "")
    write_sealed(data / "schema.json", {**schema, "source": "another name"})
    summary = resume(tmp_path / "run")
    assert summary.best_step < 25
    load_trained(RunDirectory(tmp_path / "run"))


names = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=6)


@given(names, names)
def test_a_digest_is_of_the_categories_in_their_order(one: list[str], other: list[str]) -> None:
    digests = [
        digest_categories(pl.DataFrame({"category": pl.Series([None, *names], dtype=pl.String)}))
        for names in (one, other)
    ]
    assert (digests[0] == digests[1]) == (one == other)


def test_what_is_prepared_says_what_its_ids_are(mlet: Mlet, clicks: Path, tmp_path: Path) -> None:
    prepare(mlet, clicks, "data")
    data = PreparedDataset(tmp_path / "data")
    for field in data.schema.fields:
        assert field.digest == digest_categories(data.vocabulary(field.name))
    files = {
        path.relative_to(data.root).as_posix() for path in data.root.rglob("*") if path.is_file()
    }
    assert set(data.schema.checksums or {}) == files - {"schema.json"}
