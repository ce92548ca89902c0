"""Rows that do not all count alike: read, checked, and heeded wherever there is a mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from logs_made import source, write_csv
from sklearn.metrics import log_loss, roc_auc_score
from torch.nn import functional as F
from typer.testing import CliRunner

from mlet.cli.app import app
from mlet.data import BatchLoader, PreparedDataset, SplitRule, prepare
from mlet.data.source import RawColumns
from mlet.errors import ConfigError, DataError
from mlet.inspection.gains import category_gains
from mlet.metrics import score
from mlet.models import build_model
from mlet.studies import CompareConfig, compare, write_comparison
from mlet.studies.arm_table import markdown
from mlet.studies.bias_only import bias_only
from mlet.studies.precisions import precision_points
from mlet.studies.progressive import progress
from mlet.task import Binary, Task
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.config import TrainingConfig
from mlet.training.load import load_for_evaluation
from mlet.training.predict import predict, served_scores

ROWS = 1_200
RNG = np.random.default_rng(0)
USERS = RNG.zipf(1.5, ROWS).clip(max=40)
RATE = RNG.uniform(0.1, 0.9, 41)
WEIGHT = np.where(RNG.random(ROWS) < 0.1, 0.0, RNG.choice([0.25, 1.0, 8.0], ROWS))
CLICK = (RNG.random(ROWS) < RATE[USERS]).astype(int)
FRAME = pl.DataFrame(
    {
        "click": CLICK,
        "user": [f"u{user}" for user in USERS],
        "item": [f"i{item}" for item in RNG.integers(30, size=ROWS)],
        "ipw": WEIGHT,
    }
)
SCHEMA: dict[str, Any] = {
    "label": "click",
    "categorical": ["user", "item"],
    "weight": "ipw",
    "group": "user",
}
MODEL = {"dim": 2, "bottom_mlp": [4], "top_mlp": [4]}


def dataset(folder: Path, schema: dict[str, Any] = SCHEMA, frame: pl.DataFrame = FRAME) -> Path:
    frame.write_parquet(folder / "rows.parquet")
    prepare(source([folder / "rows.parquet"], schema), folder / "d", split=SplitRule(by="order"))
    return folder / "d"


def settings(data: Path, **training: Any) -> RunConfig:
    chosen = {"epochs": 2, "batch_size": 64, "threads": 1, **training}
    return RunConfig.parse({"data": str(data), "model": MODEL, "training": chosen}, "test")


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("weighted"))


@pytest.fixture(scope="module")
def run(weighted: Path) -> Path:
    train(settings(weighted), weighted.parent / "run")
    return weighted.parent / "run"


@pytest.mark.parametrize("cell", ["-1", "", "NaN", "inf", "1e31", "heavy"])
def test_what_is_no_weight_is_refused_with_its_line(tmp_path: Path, cell: str) -> None:
    rows: list[dict[str, object]] = [
        {"click": row % 2, "user": "u", "ipw": cell if row == 3 else 1.5} for row in range(400)
    ]
    path = write_csv(tmp_path / "rows.csv", rows)
    schema = {"label": "click", "categorical": ["user"], "weight": "ipw"}
    with pytest.raises(DataError) as error:
        prepare(source([path], schema), tmp_path / "d")
    shown = repr(cell) if cell else "nothing"
    assert f"{path}, line 5: column 'ipw' holds {shown}, expected a weight" in str(error.value)
    assert "0 for a row that is to count for nothing" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "d").exists()
    prepare(source([path], schema, skip_bad_rows=1), tmp_path / "d")
    assert sum(s.rows for s in PreparedDataset(tmp_path / "d").schema.splits.values()) == 399


def test_weights_are_kept_beside_labels(weighted: Path) -> None:
    data, done = PreparedDataset(weighted), 0
    for name in ("train", "valid", "test"):
        columns, split = data.split(name), data.schema.splits[name]
        expected = WEIGHT[done : done + split.rows]
        assert columns.weights is not None
        np.testing.assert_array_equal(columns.weights, expected.astype(np.float32))
        assert split.mean_weight == pytest.approx(expected.mean())
        batches = list(BatchLoader(columns, 100).epoch())
        given = np.concatenate([batch.weights for batch in batches])
        np.testing.assert_allclose(given, expected / data.schema.splits["train"].mean_weight)
        done += split.rows
    columns = data.split("train")  # shuffled, a weight stays with its row
    rows = np.column_stack([*columns.ids, columns.labels["label"], columns.weights])
    found = [
        np.column_stack([b.ids, b.labels["label"], b.weights * columns.mean_weight])
        for b in BatchLoader(columns, 64, seed=3).epoch()
    ]
    shuffled = np.concatenate(found).round(4)
    assert not np.array_equal(shuffled, rows)
    assert sorted(map(tuple, shuffled.tolist())) == sorted(map(tuple, rows.tolist()))


def test_splits_need_rows_that_count(tmp_path: Path) -> None:
    nothing = FRAME.with_columns(ipw=pl.when(pl.int_range(pl.len()) < 960).then(1.0).otherwise(0.0))
    with pytest.raises(DataError, match="the valid split has only weights of 0"):
        dataset(tmp_path, SCHEMA, nothing)
    one_kind = FRAME.with_columns(ipw=pl.col("click").cast(pl.Float64))
    with pytest.raises(DataError, match="only labels 1, so AUC is undefined"):
        dataset(tmp_path, SCHEMA, one_kind)


def test_metrics_are_those_of_scikit_learn() -> None:
    p = RNG.choice(np.linspace(0.05, 0.95, 12), ROWS)  # with ties
    found = score(CLICK, p, WEIGHT)
    assert found.auc == pytest.approx(roc_auc_score(CLICK, p, sample_weight=WEIGHT), abs=1e-12)
    assert found.logloss == pytest.approx(log_loss(CLICK, p, sample_weight=WEIGHT), abs=1e-12)
    assert found.calibration == pytest.approx((WEIGHT @ p) / (WEIGHT @ CLICK), abs=1e-12)
    clicks, others = (np.flatnonzero(label == CLICK) for label in (1, 0))
    wins = (p[clicks][:, None] > p[others]) + 0.5 * (p[clicks][:, None] == p[others])
    pairs = WEIGHT[clicks][:, None] * WEIGHT[others]
    assert found.auc == pytest.approx((pairs * wins).sum() / pairs.sum(), abs=1e-12)
    times = RNG.integers(4, size=ROWS)  # a weight of 3 is the row three times
    np.testing.assert_allclose(
        score(CLICK, p, times), score(np.repeat(CLICK, times), np.repeat(p, times)), rtol=1e-12
    )
    assert np.isnan(score(CLICK, p, np.zeros(ROWS))).all()
    assert np.isnan(score(CLICK, p, CLICK).auc)


def test_resampled_metrics_are_those_of_the_resampled_rows() -> None:
    p = RNG.random(50).round(1).clip(0.05, 0.95)
    y, w = CLICK[:50], WEIGHT[:50]
    task = Binary()
    found = task.resampled(y, p, samples=7, seed=2, weights=w)
    np.testing.assert_allclose(
        found, Task.resampled(task, y, p, samples=7, seed=2, weights=w), rtol=1e-9
    )
    low, high = task.intervals(y, p, samples=7, seed=2, weights=w)["logloss"]
    np.testing.assert_allclose((low, high), np.percentile(found[:, 1], [2.5, 97.5]))


def test_a_step_is_one_on_the_weighted_mean(weighted: Path, tmp_path: Path) -> None:
    config = settings(weighted, batch_size=960, epochs=1, validate_every=1)
    config = config.model_copy(update={"optimizer": config.optimizer.same("sgd", 0.5)})
    train(config, tmp_path / "run")
    data = PreparedDataset(weighted)
    torch.manual_seed(0)
    model = build_model(config.model, data.schema)
    (batch,) = BatchLoader(data.split("train"), 960, seed=0).epoch()
    losses = F.binary_cross_entropy_with_logits(
        model(batch), batch.labels["label"], reduction="none"
    )
    weights = batch.weights
    assert weights is not None
    loss = (losses * weights).sum() / weights.sum()
    recorded = RunDirectory(tmp_path / "run").metrics()[0]["train_loss"]
    assert recorded == pytest.approx(loss.item(), rel=1e-5)
    assert recorded != pytest.approx(losses.mean().item(), rel=1e-3)
    loss.backward()
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    expected = layer.weight.detach() - 0.5 * layer.weight.grad
    state = RunDirectory(tmp_path / "run").load_best()["model"]
    name = next(n for n, p in model.named_parameters() if p is layer.weight)
    torch.testing.assert_close(state[name], expected, rtol=1e-4, atol=1e-6)


def test_weights_that_are_all_alike_change_nothing(tmp_path: Path) -> None:
    states = []
    for name, weight in (("none", None), ("ones", 1.0), ("more", 3.3)):
        folder = tmp_path / name
        folder.mkdir()
        schema = {k: v for k, v in SCHEMA.items() if weight or k != "weight"}
        data = dataset(folder, schema, FRAME.with_columns(ipw=pl.lit(weight or 0.0)))
        assert ("mean_weight" in (data / "schema.json").read_text()) == bool(weight)
        assert ('"weight"' in (data / "schema.json").read_text()) == bool(weight)
        summary = train(settings(data, epochs=1), folder / "run")
        states.append((summary.valid, RunDirectory(folder / "run").load_best()["model"]))
    for valid, state in states[1:]:
        assert valid == pytest.approx(states[0][0], rel=1e-12)
        for name, tensor in state.items():
            assert torch.equal(tensor, states[0][1][name]), "to the bit"


def test_runs_are_chosen_and_evaluated_by_weighted_metrics(weighted: Path, run: Path) -> None:
    model, data = load_for_evaluation(run, None)
    columns = data.split("valid")
    y, w, p = columns.labels["label"], columns.weights, predict(model, columns)
    valid = RunDirectory(run).summary().valid
    assert valid["auc"] == pytest.approx(roc_auc_score(y, p, sample_weight=w), abs=1e-6)
    assert valid["logloss"] == pytest.approx(log_loss(y, p, sample_weight=w), abs=1e-6)
    result = CliRunner().invoke(app, ["evaluate", str(run), "--json", "--bootstrap", "20"])
    whole, *slices = json.loads(result.stdout)["slices"]
    columns = data.split("test")
    y, w = np.asarray(columns.labels["label"]), np.asarray(columns.weights, np.float64)
    p = served_scores(model, columns)
    assert whole["weight"] == pytest.approx(w.sum())
    assert whole["auc"]["value"] == pytest.approx(roc_auc_score(y, p, sample_weight=w))
    assert whole["logloss"]["value"] == pytest.approx(log_loss(y, p, sample_weight=w))
    assert whole["auc"]["low"] < whole["auc"]["value"] < whole["auc"]["high"]
    counts = data.rarest_counts("test")
    rows = (counts >= 10) & (counts < 100)
    part = next(one for one in slices if one["counts"] == "10-99")
    assert part["rows"] == rows.sum() > 0
    assert part["weight"] == pytest.approx(w[rows].sum())
    assert part["logloss"]["value"] == pytest.approx(
        log_loss(y[rows], p[rows], sample_weight=w[rows])
    )
    shown = CliRunner().invoke(app, ["evaluate", str(run), "--bootstrap", "20"]).stdout
    assert "weight" in shown


def test_comparisons_and_their_reports_are_weighted_and_have_gauc(
    weighted: Path, tmp_path: Path
) -> None:
    base = {"data": str(weighted), "model": MODEL, "training": {"epochs": 1, "threads": 1}}
    values = {
        "base": base, "dims": [2], "inner_dims": [4], "seeds": 1, "learning_rates": [0.1],
    }  # fmt: skip
    comparison = compare(CompareConfig.parse(values, "test"), tmp_path / "out", jobs=1)
    data = PreparedDataset(weighted)
    columns = data.split("test")
    y, w = columns.labels["label"], columns.weights
    users, gauc = USERS[-len(y) :], {}
    for arm in comparison.arms:
        with np.load(arm.predictions[0] / "test.npz") as arrays:
            p, draws = arrays["probabilities"], arrays["resamples"]
        auc = roc_auc_score(y, p, sample_weight=w)
        assert arm.runs[0].test["auc"] == pytest.approx(auc)
        assert np.percentile(draws[:, 0], 1) < auc < np.percentile(draws[:, 0], 99)
        parts = [(y[users == u], p[users == u], w[users == u]) for u in np.unique(users)]
        parts = [part for part in parts if len(set(part[0][part[2] > 0])) == 2]
        aucs = [roc_auc_score(y_, p_, sample_weight=w_) for y_, p_, w_ in parts]
        expected = np.average(aucs, weights=[part[2].sum() for part in parts])
        assert arm.runs[0].test["gauc"] == pytest.approx(expected)
        gauc[arm.method.kind] = expected
    assert any("rows count by their weights" in one for one in comparison.verdict())
    page = write_comparison(comparison, tmp_path / "out").read_text()
    assert "rows count by their weights" in page
    assert "test GAUC" in page
    assert "the AUC within the rows of one &#39;user&#39;" in page
    slt, mlet = json.loads((tmp_path / "out" / "compare.json").read_text())["arms"]
    assert slt["test"]["gauc"]["mean"] == pytest.approx(gauc["slt"])
    assert mlet["test"]["gauc"]["mean"] == pytest.approx(gauc["mlet"])
    place = comparison.columns.index("GAUC gain")
    (shown,) = [row[place] for row in comparison.rows() if row[0] == "MLET"]
    assert shown.startswith(f"{gauc['mlet'] - gauc['slt']:+.4f}")
    tables = markdown(comparison.result)
    assert "test GAUC | GAUC gain" in tables
    assert f"{gauc['slt']:.4f}" in tables


def test_progressive_scores_and_click_rates_are_weighted(weighted: Path, tmp_path: Path) -> None:
    found = progress(settings(weighted, epochs=1), 64)
    flat = dataset(tmp_path, {k: v for k, v in SCHEMA.items() if k != "weight"})
    other = progress(settings(flat, epochs=1), 64)
    assert found is not None
    assert other is not None
    assert found.test["auc"] != other.test["auc"]
    data, task = PreparedDataset(weighted), Binary()
    alone = bias_only(
        data, task, TrainingConfig(batch_size=64, threads=1), tmp_path / "b.json", lambda *_: None
    )
    assert alone.constant == 0.5
    assert alone.low < alone.value < alone.high


def test_gains_of_categories_are_weighted_means(weighted: Path) -> None:
    data = PreparedDataset(weighted)
    columns = data.split("test")
    rng = np.random.default_rng(1)
    theirs, mine = rng.random((2, len(columns)))
    gains = category_gains(data, theirs, mine)["user"]
    ids, w = columns.ids[0], np.asarray(columns.weights, np.float64)
    seen = [c for c in np.unique(ids).tolist() if w[ids == c].sum() > 0]
    for place, category in enumerate(seen):
        rows = ids == category
        expected = np.average((theirs - mine)[rows], weights=w[rows])
        assert gains.gains[place] == pytest.approx(expected)
        assert gains.rows[place] == rows.sum()


class Unweighing(Binary):
    """A task of before there were weights."""

    weighted = False


def test_a_task_without_weights_refuses_them(weighted: Path, tmp_path: Path) -> None:
    model = {**MODEL, "task": f"{Unweighing.__module__}:Unweighing"}
    config = RunConfig.parse({"data": str(weighted), "model": model}, "test")
    with pytest.raises(ConfigError, match=r"task Unweighing takes no weights, .* weighted = True"):
        train(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="takes no weights"):
        Unweighing().scored([0, 1], [0.2, 0.7], [1, 2])
    assert Unweighing().scored([0, 1], [0.2, 0.7])["auc"] == 1.0


def test_readers_of_other_packages_give_weights_too(tmp_path: Path) -> None:
    class Reader:
        description, default_split = "made", "order"
        columns = RawColumns(dense={}, categorical=("u",), weight=True)
        weights: Callable[[int], Any] = staticmethod(lambda rows: pl.repeat(2.0, rows, eager=True))

        def frames(self):  # type: ignore[no-untyped-def]
            click = pl.Series("label", [0, 1] * 50, dtype=pl.UInt8)
            weight = self.weights(100).alias("weight")
            yield pl.DataFrame([click, pl.repeat("a", 100, eager=True).alias("field:u"), weight])

    prepare(Reader(), tmp_path / "good")
    assert PreparedDataset(tmp_path / "good").schema.splits["test"].mean_weight == 2.0
    Reader.weights = staticmethod(lambda rows: pl.repeat(-1.0, rows, eager=True))
    with pytest.raises(DataError, match="gives other values of 'weight' than 0 to 1e"):
        prepare(Reader(), tmp_path / "bad")


def test_points_of_a_search_are_weighted(weighted: Path, run: Path) -> None:
    (point,) = precision_points(run, weighted, ["float32"])
    for name, value in RunDirectory(run).summary().valid.items():
        assert point["scores"][name] == pytest.approx(value, abs=1e-6), name
