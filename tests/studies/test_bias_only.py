"""The check for leaks: click rates alone, on data that mirrors them and on data that does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mlet.data import PreparedDataset
from mlet.data.prepare import prepare
from mlet.data.readers.table import TableSchema, TableSource
from mlet.studies import StudyConfig, sweep
from mlet.studies.arm_table import markdown
from mlet.studies.bias_only import BiasOnly, bias_only
from mlet.studies.report import to_dict, write_report
from mlet.studies.verdict import data_sentences
from mlet.task import TASKS
from mlet.training.config import TrainingConfig

TASK = TASKS["binary"]()


def quiet(what: str, done: int, total: int | None) -> None:
    """Show nothing."""


def sampled_negatives(folder: Path, *, positives_first: bool) -> PreparedDataset:
    """400 users with 10 positives each, and a negative for each positive. Split at random are the
    rows, or the positives, whose negatives stay with them."""
    generator = np.random.default_rng(0)
    user = np.repeat(np.arange(400), 20)
    label = np.tile([1, 0], 4_000)
    part = generator.choice([0, 1, 2], p=[0.6, 0.1, 0.3], size=len(user))
    if positives_first:
        part[1::2] = part[::2]
    rows = {"label": label, "user": user, "item": generator.integers(50, size=8_000), "part": part}
    pl.DataFrame(rows).write_parquet(folder / "rows.parquet")
    schema = {"label": "label", "categorical": ["user", "item"], "split": {"column": "part"}}
    source = TableSource([folder / "rows.parquet"], TableSchema.parse(schema, "test"))
    prepare(source, folder / "data")
    return PreparedDataset(folder / "data")


@pytest.mark.parametrize("positives_first", [False, True])
def test_a_split_of_finished_rows_is_found_out(tmp_path: Path, positives_first: bool) -> None:
    data = sampled_negatives(tmp_path, positives_first=positives_first)
    found = bias_only(data, TASK, TrainingConfig(threads=1), tmp_path / "found.json", quiet)
    assert found.constant == 0.5
    assert found.low < found.value < found.high
    assert found.mirrors(TASK) == (not positives_first)
    sentence = found.sentence("mine", TASK)
    assert sentence.startswith("mine: beware" if not positives_first else "mine: the click rates")


def test_noise_is_not_called_a_leak(small_data: Path, tmp_path: Path) -> None:
    data = PreparedDataset(small_data)
    found = bias_only(data, TASK, TrainingConfig(threads=1), tmp_path / "found.json", quiet)
    assert found.value > 0.6
    assert not found.mirrors(TASK)
    assert not BiasOnly(0.49, 0.48, 0.5, 0.5).mirrors(TASK)
    assert BiasOnly(0.47, 0.46, 0.48, 0.5).mirrors(TASK)


def test_it_is_found_once_and_again_for_other_data(small_data: Path, tmp_path: Path) -> None:
    training, file = TrainingConfig(threads=1), tmp_path / "found.json"
    data, calls = PreparedDataset(small_data), []

    def count(what: str, done: int, total: int | None) -> None:
        calls.append(what)

    first = bias_only(data, TASK, training, file, count)
    made = len(calls)
    assert made > 0
    assert bias_only(data, TASK, training, file, count) == first
    assert len(calls) == made, "it is read"
    file.write_text(file.read_text().replace("0.", "1.", 1))
    assert bias_only(data, TASK, training, file, count) == first
    assert len(calls) == 2 * made, "a damaged file is made again"
    other = sampled_negatives(tmp_path, positives_first=True)
    assert bias_only(other, TASK, training, file, count) != first


@pytest.mark.slow
def test_every_study_says_it(tmp_path: Path) -> None:
    data = sampled_negatives(tmp_path, positives_first=False)
    config = StudyConfig.parse(
        {
            "datasets": {"mine": {"prepared": str(data.root)}},
            "models": {"dlrm": {"top_mlp": [8]}},
            "optimizers": ["adagrad"],
            "dims": [2],
            "seeds": 1,
            "tuning": {"trials": 1},
            "training": {"epochs": 1, "batch_size": 256},
            "resamples": 10,
        },
        "study",
    )
    result = sweep(config, tmp_path / "out", jobs=1)
    sentence, unseen = data_sentences(result)
    share = (data.rarest_counts("test") == 0).mean()
    assert unseen.startswith(f"mine: {share:.1%} of the test rows")
    assert sentence.startswith("mine: beware")
    assert sentence in markdown(result)
    assert sentence in write_report(result, tmp_path / "out").read_text()
    assert to_dict(result)["biases"]["mine"]["value"] < 0.5
