"""What a model is for, from outside: other losses, predictions and metrics than those of clicks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.data import BatchLoader, PreparedDataset
from mlet.errors import ConfigError, DataError
from mlet.export import load_collapsed
from mlet.models import build_model
from mlet.studies import CompareConfig, StudyConfig, compare, write_comparison
from mlet.task import TASKS, Binary, Task
from mlet.training import RunConfig, resume, train
from mlet.training.evaluate import evaluate
from mlet.training.predict import predict

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]  # noqa: F821

PACKAGE = """
import numpy as np
from mlet.task import Binary, Metric, Task

class Brier(Task):
    headline = row_loss = Metric("brier", "Brier score", "lower")

    def loss(self, outputs, labels):
        return (outputs.sigmoid() - labels).square().mean()

    def predictions(self, outputs):
        return outputs.sigmoid()

    def row_losses(self, labels, predictions):
        return (np.asarray(labels, np.float64) - np.asarray(predictions, np.float64)) ** 2

    def score(self, labels, predictions):
        losses = self.row_losses(labels, predictions)
        return {"brier": float(losses.mean()) if len(losses) else np.nan}

class Likelihood(Binary):
    headline, others = Binary.row_loss, (Binary.headline,)

class Conversion(Brier):
    label = "conversion"
"""


@pytest.fixture
def brier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a task that lives in another package."""
    root = tmp_path / "site"
    root.mkdir()
    (root / "losses.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("PYTHONPATH", str(root), prepend=os.pathsep)
    yield "losses:Brier"
    sys.modules.pop("losses", None)


def base(data: Path, task: str) -> dict[str, object]:
    return {
        "data": str(data),
        "model": {"task": task, "dim": 2, "bottom_mlp": [8], "top_mlp": [8]},
        "training": {"epochs": 3, "batch_size": 128, "threads": 1, "patience": None},
        "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.1}},
    }


def test_a_run_keeps_the_weights_that_are_best_by_its_tasks_metric(
    small_data: Path, tmp_path: Path, brier: str
) -> None:
    summary = train(RunConfig.parse(base(small_data, brier), "test"), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    values = {(record := json.loads(line))["step"]: record["valid_brier"] for line in lines}
    assert len(set(values.values())) > 1
    assert values[summary.best_step] == min(values.values()), "less is better"
    assert summary.valid == {"brier": min(values.values())}
    model, _, _ = load_collapsed(tmp_path / "run" / "model.safetensors")
    columns = PreparedDataset(small_data).split("valid")
    p, y = predict(model, columns), np.asarray(columns.labels["label"], np.float64)
    assert ((p - y) ** 2).mean() == pytest.approx(summary.valid["brier"])
    assert resume(tmp_path / "run") == summary
    whole = evaluate(model, PreparedDataset(small_data), split="valid", samples=20)[0]
    assert whole.scores["brier"] == pytest.approx(summary.valid["brier"])
    low, high = whole.intervals["brier"]
    assert low < whole.scores["brier"] < high


def test_the_loss_is_the_tasks(small_data: Path, tmp_path: Path, brier: str) -> None:
    values = base(small_data, brier)
    values["training"] = {"batch_size": 128, "validate_every": 1, "epochs": 1, "threads": 1}
    config = RunConfig.parse(values, "test")
    train(config, tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    data = PreparedDataset(small_data)
    torch.manual_seed(0)
    model = build_model(config.model, data.schema)
    batch = next(BatchLoader(data.split("train"), 128, 0).epoch())
    with torch.no_grad():
        expected = (model(batch).sigmoid() - batch.labels["label"]).square().mean()
    assert first["train_loss"] == pytest.approx(float(expected))


def test_a_comparison_in_another_metric(small_data: Path, tmp_path: Path, brier: str) -> None:
    values = {
        "base": base(small_data, brier), "dims": [2, 4], "inner_dims": [8], "seeds": 2,
        "learning_rates": [1e-4, 0.1],
    }  # fmt: skip
    comparison = compare(CompareConfig.parse(values, "test"), tmp_path / "out", jobs=2)
    for arm in comparison.arms:
        assert arm.learning_rate == 0.1, "the one with the lower Brier score is kept"
        gain = comparison.panel.gain(arm)
        if comparison.panel.outcome(arm) == "better":
            assert gain.mean < 0
        if comparison.panel.outcome(arm) == "worse":
            assert gain.mean > 0
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    mlet = [arm for arm in content["arms"] if arm["method"] == "mlet"]
    assert set(mlet[0]["test"]) == {"brier", "brier_gain", "reduction"}
    slt = {arm["dim"]: arm["test"]["brier"]["mean"] for arm in content["arms"] if arm not in mlet}
    for arm in mlet:
        kind = arm["test"]["reduction"]["kind"]
        if arm["test"]["brier"]["mean"] < min(slt.values()):
            assert kind == "above"
        if arm["test"]["brier"]["mean"] > slt[2]:
            assert kind != "above"
    page = write_comparison(comparison, tmp_path / "out").read_text()
    assert "Brier score" in page
    assert "AUC" not in page
    assert "logloss" not in page
    assert "test Brier score" in comparison.markdown()


def test_the_command_line_speaks_of_the_tasks_metrics(
    small_data: Path, tmp_path: Path, brier: str, mlet: Mlet
) -> None:
    run = str(tmp_path / "run")
    done = mlet(
        "train", str(small_data), "--out", run, "--epochs", "1", "--set", f"model.task={brier}"
    )
    assert "valid Brier score 0." in done.stdout
    table = mlet("evaluate", run, "--bootstrap", "5").stdout
    assert "Brier score" in table
    assert "AUC" not in table
    content = json.loads(mlet("evaluate", run, "--bootstrap", "5", "--json").stdout)
    assert set(content["slices"][0]) == {"counts", "rows", "clicks", "brier"}


def test_what_cannot_be_is_named(small_data: Path, tmp_path: Path, brier: str) -> None:
    with pytest.raises(ConfigError, match="no task 'binery'; did you mean 'binary'"):
        RunConfig.parse(base(small_data, "binery"), "test")
    config = RunConfig.parse(base(small_data, "losses:Conversion"), "test")
    with pytest.raises(DataError, match=r"no labels 'conversion'.*there are: label"):
        train(config, tmp_path / "run")
    study = {
        "datasets": {"data": {"prepared": str(small_data)}}, "optimizers": ["adagrad"],
        "dims": [2], "models": {"fm": {}, "dlrm": {"task": brier}},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="models: of one task, not of binary, losses:Brier"):
        StudyConfig.parse(study, "test")
    with pytest.raises(ConfigError, match="'task' is the models' to set"):
        StudyConfig.parse({**study, "models": ["fm"], "peers": {"p": {"task": brier}}}, "test")


def test_labels_go_by_name(small_data: Path) -> None:
    batch = next(BatchLoader(PreparedDataset(small_data).split("train"), 8).epoch())
    assert batch.labels["label"].shape == (8,)
    with pytest.raises(AttributeError, match=r"batch.labels\['label'\]"):
        batch.labels.mean()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 40))
def test_resampling_by_sorting_once_is_scoring_the_resampled_rows(seed: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    y, p = generator.integers(2, size=rows), np.round(generator.random(rows), 1)
    task = Binary()
    np.testing.assert_allclose(
        task.resampled(y, p, samples=5, seed=seed),
        Task.resampled(task, y, p, samples=5, seed=seed),
    )


def test_a_task_with_the_same_metrics_in_another_order(brier: str) -> None:
    task = TASKS["losses:Likelihood"]()
    y, p = np.array([0, 1, 0, 1, 1]), np.array([0.2, 0.4, 0.6, 0.7, 0.9])
    assert [metric.name for metric in task.metrics] == ["logloss", "auc"]
    draws = task.resampled(y, p, samples=9)
    np.testing.assert_array_equal(draws, Binary().resampled(y, p, samples=9)[:, [1, 0]])


def test_outputs_are_one_a_row() -> None:
    """Not broadcast against the labels, nor an error of torch's."""
    with pytest.raises(ConfigError, match=r"shape \(3, 1\) for 3 rows: .* outputs.squeeze\(1\)"):
        TASKS["binary"]().batch_loss(torch.zeros(3, 1), torch.ones(3), None)
