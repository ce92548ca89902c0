"""Progressive validation: the past is trained on, the next block scored, the future unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from mlet.data import BatchLoader, PreparedDataset
from mlet.data.prepare import SplitRule, prepare
from mlet.data.readers.table import TableSchema, TableSource
from mlet.errors import ConfigError, RunError
from mlet.models import build_model
from mlet.studies.progressive import progress
from mlet.studies.progressive_comparison import ProgressiveConfig, compare_progressively
from mlet.training import RunConfig
from mlet.training.optimizers import Optimizers

ROWS = 4_000


def dataset(folder: Path, *, changed_after: int = ROWS, by: Any = "order") -> Path:
    """Users whose liking of an item drifts; labels from some row on may be others."""
    generator = np.random.default_rng(0)
    user, item = generator.integers(60, size=ROWS), generator.integers(20, size=ROWS)
    drift = np.arange(ROWS) / ROWS
    score = np.sin(user * 1.7) * np.cos(item * 2.3) + drift * np.sin(item)
    label = (generator.random(ROWS) < 1 / (1 + np.exp(-3 * score))).astype(int)
    label[changed_after:] = 1 - label[changed_after:]
    folder.mkdir()
    frame = pl.DataFrame({"label": label, "user": user, "item": item})
    frame.write_parquet(folder / "rows.parquet")
    schema = TableSchema.parse({"label": "label", "categorical": ["user", "item"]}, "test")
    rule = SplitRule(by=by, valid=0.2, test=0.3)
    prepare(TableSource([folder / "rows.parquet"], schema), folder / "data", split=rule)
    return folder / "data"


def config(data: Path, **model: Any) -> RunConfig:
    values = {
        "data": str(data),
        "model": {"name": "dlrm", "dim": 3, "top_mlp": [8], **model},
        "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.1}},
        "training": {"batch_size": 50, "epochs": 2, "threads": 1},
    }
    return RunConfig.parse(values, "test")


def test_each_block_is_scored_by_a_model_of_all_rows_before_it(tmp_path: Path) -> None:
    run = config(dataset(tmp_path / "a"), inner_dim=8)
    found = progress(run, 120)
    data = PreparedDataset(run.data)
    torch.manual_seed(0)
    model = build_model(run.model, data.schema)
    optimizers = Optimizers(run.optimizer, model, 50)

    def learn(batch: Any) -> None:
        loss = model.task.loss(model(batch), batch.labels["label"])
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()

    for epoch in range(2):
        for batch in BatchLoader(data.split("train"), 50, 0).epoch(epoch):
            learn(batch)
    for name in ("valid", "test"):
        columns = data.split(name)
        batches = list(BatchLoader(columns, 50).epoch())
        blocks = [batches[at : at + 3] for at in range(0, len(batches), 3)]  # 150 rows, over 120
        predictions = []
        for block in blocks:
            with torch.no_grad():
                predictions += [model(batch).double().sigmoid().numpy() for batch in block]
            for batch in block:
                learn(batch)
        expected = model.task.score(columns.labels["label"], np.concatenate(predictions))
        assert found is not None
        assert (found.valid if name == "valid" else found.test) == expected
    assert len(found.blocks) == len(blocks) == 8


def test_the_future_changes_nothing_of_what_was_scored_before_it(tmp_path: Path) -> None:
    test_begins, block = int(ROWS * 0.7), 200
    plain, changed = (
        progress(config(dataset(tmp_path / str(row), changed_after=row), init=init), block)
        for row, init in ((ROWS, "co_occurrence"), (test_begins + 2 * block, "co_occurrence"))
    )
    assert plain is not None
    assert changed is not None
    assert plain.valid == changed.valid
    assert plain.blocks[:2] == changed.blocks[:2]
    assert plain.blocks[2] != changed.blocks[2]
    assert plain.blocks[2] == pytest.approx(1 - changed.blocks[2]), "all its labels are others"


def test_rows_without_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split at random: prepare it with --split time"):
        progress(config(dataset(tmp_path / "a", by="random")), 100)


def test_a_run_that_diverges_has_no_scores(tmp_path: Path) -> None:
    run = config(dataset(tmp_path / "a"))
    assert progress(run.model_copy(update={"optimizer": run.optimizer.at(1e30)}), 100) is None


@pytest.mark.slow
def test_arms_are_compared_and_the_comparison_continues(mlet, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = dataset(tmp_path / "a")
    command = (
        "progressive", data, "--out", "out", "--dims", "2", "--inner-dims", "6", "--seeds", "2",
        "--learning-rates", "0.05,0.2,1e30", "--block-rows", "200", "--batch-size", "50",
        "--set", "mlet.table_bias=true", "--set", "model.top_mlp=[8]", "--json", "found.json",
        "--preset", "plain",
    )  # fmt: skip
    printed = mlet(*command).stdout
    assert "mlet-k6" in printed
    assert " of 6" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert [arm["method"] for arm in found["arms"]] == ["slt", "mlet-k6"]
    for arm in found["arms"]:
        assert len(arm["runs"]) == 2
        assert arm["learning_rate"] in (0.05, 0.2)
        assert all(run["test"]["auc"] > 0.55 for run in arm["runs"])
        name = f"{arm['method']}-d2-lr{arm['learning_rate']:g}"
        tried = {
            path: json.loads(path.read_text()).get("valid", {}).get("auc", 0)
            for path in (tmp_path / "out" / "runs").glob(f"{arm['method']}-d2-*-seed0.json")
        }
        assert len(tried) == 3
        assert max(tried, key=lambda path: tried[path]).name == f"{name}-seed0.json"
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    mlet(*command)
    assert files == {path: path.stat().st_mtime_ns for path in files}, "nothing is run again"
    mlet(*command, "--seeds", "3")
    refused = mlet(*command, "--block-rows", "300", code=2).stderr
    assert "other settings or data" in refused
    one = next(iter(files))
    one.write_text(one.read_text().replace("0.", "1.", 1))
    assert "damaged" in mlet(*command, code=2).stderr


def test_no_step_size_that_works_is_an_error(tmp_path: Path) -> None:
    base = config(dataset(tmp_path / "a")).model_dump(mode="json")
    settings = {"base": base, "dims": [2], "inner_dims": [6], "learning_rates": [1e30]}
    with pytest.raises(RunError, match="no learning rate works for slt-d2"):
        compare_progressively(ProgressiveConfig.parse(settings, "test"), tmp_path / "out", jobs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlet": {"inner_dim": 3}}, "'inner_dim' is the study's to set"),
        ({"mlet": {"table_bais": True}}, "did you mean 'table_bias'"),
        ({"base": {"data": "d", "start": "run"}}, "arms begin on their own"),
        ({"dims": [2, 2]}, "2 is listed twice"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    settings = {"base": {"data": "d"}, "dims": [2], "inner_dims": [6], "learning_rates": [0.1]}
    with pytest.raises(ConfigError, match=message):
        ProgressiveConfig.parse({**settings, **changes}, "test")
