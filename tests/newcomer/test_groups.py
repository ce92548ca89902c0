"""Metrics within groups of rows and on the rows of a category, against loops over them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from logs_made import source
from sklearn.metrics import log_loss, roc_auc_score
from typer.testing import CliRunner, Result

from mlet.cli.app import app
from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import TableSchema
from mlet.errors import ConfigError
from mlet.metrics import GroupAUCs, group_aucs, score
from mlet.training import RunConfig, train
from mlet.training.evaluate import ScoredSplit
from mlet.training.groups import category_slices
from mlet.training.load import load_for_evaluation
from mlet.training.predict import served_scores

ROWS = 1_500
RNG = np.random.default_rng(0)
SESSION = [None if s % 50 == 0 else f"s{s}" for s in RNG.integers(300, size=ROWS)]
USER = [f"u{user}" for user in RNG.zipf(1.5, ROWS).clip(max=200)]
DEVICE = RNG.choice(["phone", "desktop", "", "tv"], ROWS, p=[0.5, 0.3, 0.15, 0.05])
COUNTRY = [None if c == 9 else f"c{c % 7}" for c in RNG.integers(10, size=ROWS)]
TAGS = [list(RNG.choice(list("abc"), RNG.integers(4))) for _ in range(ROWS)]
FRAME = pl.DataFrame(
    {
        "click": (RNG.random(ROWS) < np.where(DEVICE == "tv", 0.8, 0.4)).astype(int),
        "user": USER,
        "device": DEVICE,
        "tags": ["|".join(tags) for tags in TAGS],
        "session": SESSION,
        "country": COUNTRY,
        "age": [float(age) for age in RNG.integers(20, 23, ROWS)],
        "new": ["old"] * 1_050 + ["new"] * (ROWS - 1_050),
    }
)
SCHEMA: dict[str, Any] = {
    "label": "click",
    "categorical": ["user", "device"],
    "multi_valued": {"tags": "|"},
    "group": "session",
    "dense": ["age"],
    "keep": ["country", "age", "new", "session"],
}
TEST = slice(1_050, ROWS)


def brute(
    y: np.ndarray, p: np.ndarray, groups: np.ndarray, w: np.ndarray | None = None
) -> tuple[list[float], list[float]]:
    """AUC and impressions of each group, pair by pair."""
    w = np.ones(len(y)) if w is None else w
    aucs, masses = [], []
    for group in np.unique(groups[groups >= 0]):
        rows = np.flatnonzero(groups == group)
        won = all_ = 0.0
        for i in rows[y[rows] == 1]:
            for j in rows[y[rows] == 0]:
                won += w[i] * w[j] * ((p[i] > p[j]) + (p[i] == p[j]) / 2)
                all_ += w[i] * w[j]
        if all_:
            aucs.append(won / all_)
            masses.append(w[rows].sum())
    return aucs, masses


@pytest.mark.parametrize("seed", range(20))
def test_group_aucs_are_those_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    y, groups = rng.integers(2, size=n), rng.integers(-1, 8, size=n)
    p = rng.choice(np.linspace(0, 1, 6), n)  # with ties
    for w in (None, rng.choice([0.0, 0.3, 2.5], n)):
        aucs, masses = brute(y, p, groups, w)
        found = group_aucs(y, p, groups, w)
        np.testing.assert_allclose(found.aucs, aucs, rtol=1e-12)
        np.testing.assert_allclose(found.masses, masses, rtol=1e-12)
        if aucs:
            assert found.mean == pytest.approx(np.average(aucs, weights=masses), rel=1e-12)
        else:
            assert np.isnan(found.mean)
            assert np.isnan(found.interval()).all()
        if w is None:
            assert found.rows == sum(masses)
    np.testing.assert_allclose(group_aucs(y, p, np.zeros(n, int)).mean, score(y, p).auc)


def test_the_interval_is_of_resampled_groups() -> None:
    found = GroupAUCs(RNG.random(40), RNG.integers(2, 30, 40).astype(float), 0)
    generator, means = np.random.default_rng(3), []
    for _ in range(50):
        drawn = generator.integers(40, size=40)
        means.append(np.average(found.aucs[drawn], weights=found.masses[drawn]))
    np.testing.assert_allclose(
        found.interval(samples=50, confidence=0.9, seed=3), np.percentile(means, [5, 95])
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("groups")
    FRAME.write_parquet(folder / "rows.parquet")
    rule = SplitRule(by="order", test=0.3)
    prepare(source([folder / "rows.parquet"], SCHEMA), folder / "d", split=rule)
    return PreparedDataset(folder / "d")


@pytest.fixture(scope="module")
def run(data: PreparedDataset) -> Path:
    config = {
        "data": str(data.root),
        "model": {"dim": 2, "bottom_mlp": [4], "top_mlp": [4]},
        "training": {"epochs": 2, "threads": 1},
    }
    out = data.root.parent / "run"
    train(RunConfig.parse(config, "test"), out)
    return out


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--bootstrap", "20"])
    assert result.exit_code == 0, result.output
    return result


def test_groups_that_training_never_saw_are_told_apart(data: PreparedDataset) -> None:
    assert data.schema.group == "session"
    assert "session" not in [field.name for field in data.schema.fields]
    numbers = np.concatenate([data.split(name).groups for name in ("train", "valid", "test")])
    assert [number < 0 for number in numbers] == [one is None for one in SESSION]
    pairs = {(one, number) for one, number in zip(SESSION, numbers.tolist(), strict=True) if one}
    assert len(pairs) == len({one for one, _ in pairs}) == len({number for _, number in pairs})
    assert set(SESSION[TEST]) - set(SESSION[:900]), "some are new"


def test_gauc_of_the_group_and_of_a_field(data: PreparedDataset, run: Path) -> None:
    model, _ = load_for_evaluation(run, None)
    columns = data.split("test")
    y, p = np.asarray(columns.labels["label"]), served_scores(model, columns)
    found = json.loads(invoke(run, "--json").stdout)["gauc"]
    assert set(found) == {"session"}, "by the group, without asking"
    named = np.unique([one or "" for one in SESSION[TEST]], return_inverse=True)[1]
    groups = np.where([one is None for one in SESSION[TEST]], -1, named)
    aucs, masses = brute(y, p, groups)
    expected = {"groups": len(aucs), "rows": sum(masses), "no_group": int((groups < 0).sum())}
    assert {key: found["session"][key] for key in expected} == expected
    assert found["session"]["value"] == pytest.approx(np.average(aucs, weights=masses))
    assert found["session"]["low"] < found["session"]["value"] < found["session"]["high"]
    both = json.loads(invoke(run, "--json", "--gauc", "user", "--gauc", "device").stdout)["gauc"]
    assert set(both) == {"user", "device"}
    ids = columns.ids[0]
    aucs, masses = brute(y, p, np.where(ids == 0, -1, ids))
    assert both["user"]["value"] == pytest.approx(np.average(aucs, weights=masses))
    assert both["user"]["no_group"] == (ids == 0).sum() > 0
    shown = invoke(run, "--gauc", "user").stdout.replace("\n", " ")
    assert f"GAUC by user: {both['user']['value']:.4f}" in shown
    assert f"{both['user']['no_group']} rows are in no group" in shown


def test_slices_are_the_rows_of_a_category(data: PreparedDataset, run: Path) -> None:
    model, _ = load_for_evaluation(run, None)
    columns = data.split("test")
    y, p = np.asarray(columns.labels["label"]), served_scores(model, columns)
    found = json.loads(invoke(run, "--json", "--slices", "device", "--slices", "tags").stdout)
    by_device = found["by_category"]["device"]
    device = DEVICE[TEST]
    order = sorted(set(device.tolist()), key=lambda one: -(device == one).sum())
    assert [one["category"] for one in by_device] == [one or "(missing)" for one in order]
    for part, category in zip(by_device, order, strict=True):
        rows = device == category
        assert part["rows"] == rows.sum()
        assert part["clicks"] == y[rows].sum()
        assert part["auc"]["value"] == pytest.approx(roc_auc_score(y[rows], p[rows]))
        assert part["logloss"]["value"] == pytest.approx(log_loss(y[rows], p[rows]))
    tags = {part["category"]: part for part in found["by_category"]["tags"]}
    assert set(tags) == {"a", "b", "c", "(others)"}
    for tag, part in tags.items():
        rows = np.array([tag in row if tag in "abc" else not row for row in TAGS[TEST]])
        assert part["rows"] == rows.sum()
        assert part["logloss"]["value"] == pytest.approx(log_loss(y[rows], p[rows]))
    shown = invoke(run, "--slices", "device").stdout
    assert "desktop" in shown
    assert "by device" in shown


def test_columns_that_no_model_sees(data: PreparedDataset, run: Path) -> None:
    assert data.schema.kept == ["country", "age", "new", "session"]
    assert [field.name for field in data.schema.fields] == ["user", "device", "tags"]
    model, _ = load_for_evaluation(run, None)
    columns = data.split("test")
    y, p = np.asarray(columns.labels["label"]), served_scores(model, columns)
    names = ("country", "age", "new", "session")
    options = [word for name in names for word in ("--slices", name)]
    found = json.loads(invoke(run, "--json", "--gauc", "country", *options).stdout)
    country = np.array([one or "(missing)" for one in COUNTRY[TEST]])
    parts = {part["category"]: part for part in found["by_category"]["country"]}
    assert set(parts) == set(country)
    for name, part in parts.items():
        rows = country == name
        assert part["rows"] == rows.sum()
        assert part["logloss"]["value"] == pytest.approx(log_loss(y[rows], p[rows]))
    ages = {part["category"]: part["rows"] for part in found["by_category"]["age"]}
    values = FRAME["age"][TEST]
    assert ages == {age: (values == float(age)).sum() for age in ("20", "21", "22")}
    assert [part["category"] for part in found["by_category"]["new"]] == ["new"], "unseen before"
    sessions = found["by_category"]["session"]
    assert (len(sessions), sessions[-1]["category"]) == (21, "(others)")
    groups = np.unique(country, return_inverse=True)[1]
    aucs, masses = brute(y, p, np.where(country == "(missing)", -1, groups))
    assert found["gauc"]["country"]["value"] == pytest.approx(np.average(aucs, weights=masses))
    assert found["gauc"]["country"]["no_group"] == (country == "(missing)").sum() > 0
    assert "by country" in invoke(run, "--slices", "country").stdout


def test_few_slices_leave_others(data: PreparedDataset, run: Path) -> None:
    model, _ = load_for_evaluation(run, None)
    scored = ScoredSplit(model, data, "test")
    ids, rows = np.unique(data.split("test").ids[0], return_counts=True)
    parts = category_slices(scored, "user", samples=1, most=4)
    assert [part.rows for part in parts[:4]] == sorted(rows.tolist(), reverse=True)[:4]
    assert (len(parts), parts[-1].name) == (5, "(others)")
    assert sum(part.rows for part in parts) == 450
    every = category_slices(scored, "user", samples=1, most=200)
    assert len(every) == len(ids)
    (unknown,) = [part for part in every if part.name == "(unknown or rare)"]
    assert ids[0] == 0
    assert unknown.rows == rows[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gauc", "sesion"), "no field 'sesion' to score by; there are the group session, user"),
        (("--slices", "cuntry"), "no field 'cuntry' .* other columns .* \\(keep: \\[cuntry\\]\\)"),
        (("--gauc", "tags"), "field 'tags' has several categories a row"),
    ],
)
def test_what_cannot_be_grouped_by_is_refused(
    run: Path, options: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(run), *options])
    assert re.search(message, str(result.exception))


def test_a_group_may_be_a_field_but_no_bag(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "rows.parquet")
    prepare(source([tmp_path / "rows.parquet"], {**SCHEMA, "group": "user"}), tmp_path / "d")
    columns = PreparedDataset(tmp_path / "d").split("train")
    assert columns.groups is not None
    pairs = set(zip(columns.ids[0].tolist(), columns.groups.tolist(), strict=True))
    assert len(pairs) == len({id_ for id_, _ in pairs}), "every training user is known"
    with pytest.raises(ConfigError, match="'group' must have one value a row, and 'tags' is"):
        TableSchema.parse({**SCHEMA, "group": "tags"}, "test").check()
    for keep in (["user"], ["tags"], ["country", "country"]):
        with pytest.raises(ConfigError, match=f"'keep' names '{keep[0]}', by which models are"):
            TableSchema.parse({**SCHEMA, "keep": keep}, "test").check()
    none = {key: value for key, value in SCHEMA.items() if key not in ("group", "keep")}
    prepare(source([tmp_path / "rows.parquet"], none), tmp_path / "plain")
    text = (tmp_path / "plain" / "schema.json").read_text()
    assert not any(f'"{name}"' in text for name in ("group", "keep", "kept"))
    assert not (tmp_path / "plain" / "test" / "group.npy").exists()
