"""Comparisons: alike budgets, resumed work, numbers that add up, a page that stands alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up import made_up, mlet
from sklearn.metrics import roc_auc_score

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.synthetic import SyntheticConfig, SyntheticSource
from mlet.errors import RunError
from mlet.export import load_collapsed
from mlet.reporting.text import human_bytes
from mlet.studies import CompareConfig, Comparison, StudyResult, compare, write_comparison
from mlet.studies.methods import SLT
from mlet.task import Binary
from mlet.training import RunDirectory
from mlet.training.predict import predict


def config(data: Path, **changes: object) -> CompareConfig:
    base = {
        "data": str(data),
        "model": {"bottom_mlp": [8], "top_mlp": [8]},
        "training": {"epochs": 1, "batch_size": 128, "threads": 1},
    }
    values = {"base": base, "dims": [2, 4], "inner_dims": [16], "seeds": 2, **changes}
    return CompareConfig.parse(values, "test")


@pytest.fixture(scope="module")
def finished(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    out = tmp_path_factory.mktemp("compare")
    result = compare(config(small_data, learning_rates=[0.01, 0.1]), out, jobs=2)
    return out, result


RUNS = Path("runs", "data", "dlrm", "adagrad")


def test_every_arm_gets_the_same_budget(finished: tuple[Path, Comparison]) -> None:
    out, comparison = finished
    arms = sorted(path.name for path in (out / RUNS).iterdir())
    assert arms == ["mlet-k16-d2", "mlet-k16-d4", "slt-d2", "slt-d4"]
    chosen = {f"{a.method.name}-d{a.dim}": f"l{a.learning_rate:g}" for a in comparison.arms}
    first = RunDirectory(out / RUNS / "slt-d2" / "l0.01-seed0").config()
    for arm in arms:
        runs = sorted(path.name for path in (out / RUNS / arm).iterdir())
        # Every step size with one seed, the chosen one with all.
        assert runs == sorted({"l0.01-seed0", "l0.1-seed0", f"{chosen[arm]}-seed1"})
        for name in runs:
            run = RunDirectory(out / RUNS / arm / name)
            settings = run.config()
            assert run.summary().steps == 15
            assert settings.training.model_dump(exclude={"seed"}) == (
                first.training.model_dump(exclude={"seed"})
            )
            assert arm.startswith("slt") == (settings.model.inner_dim is None)


def test_tuning_keeps_the_ratio_of_the_dense_layers_step_size(small_data: Path) -> None:
    optimizer = {"tables": {"learning_rate": 0.02}, "dense": {"learning_rate": 0.005}}
    base = {"data": str(small_data), "optimizer": optimizer}
    study = config(small_data, base=base).study()
    arm = study.arms()[-1]
    assert study.rates(arm) == (0.005, 0.08), "a quarter and four times, by default"
    tuned = study.run(arm, {"learning_rate": 0.08}, 1, small_data).optimizer
    assert tuned.tables.learning_rate == 0.08
    assert tuned.dense.learning_rate == pytest.approx(0.02)


def test_scores_are_those_of_the_collapsed_models_on_the_test_split(
    finished: tuple[Path, Comparison], small_data: Path
) -> None:
    out, comparison = finished
    data = PreparedDataset(small_data)
    columns = data.split("test")
    rare = data.rarest_counts("test") < 10
    assert comparison.panel.rare_rows == rare.sum()
    for arm in comparison.arms:
        folder = out / RUNS / f"{arm.method.name}-d{arm.dim}"
        tried = {
            rate: RunDirectory(folder / f"l{rate}-seed0").summary().valid["auc"]
            for rate in (0.01, 0.1)
        }
        assert arm.learning_rate == max(tried, key=tried.__getitem__)
        for run in arm.runs:
            name = f"l{arm.learning_rate:g}-seed{run.seed}"
            model, _, _ = load_collapsed(folder / name / "model.safetensors")
            p = predict(model, columns).astype(np.float32)  # as they are kept: some become equal
            y = np.asarray(columns.labels["label"])
            assert run.test["auc"] == pytest.approx(roc_auc_score(y, p))
            assert run.rare["auc"] == pytest.approx(roc_auc_score(y[rare], p[rare]))


def test_called_again_it_continues(small_data: Path, tmp_path: Path) -> None:
    first = compare(config(small_data, dims=[2]), tmp_path)
    files = sorted((tmp_path / "runs").rglob("summary.json"))
    stamps = [path.stat().st_mtime_ns for path in files]
    again = compare(config(small_data, dims=[2, 4]), tmp_path)
    assert [path.stat().st_mtime_ns for path in files] == stamps
    for old, new in zip(first.arms, again.arms, strict=False):
        assert old.values("test", Binary.headline) == new.values("test", Binary.headline)
    kept = (tmp_path / "compare.yaml").read_bytes()
    other = config(small_data, dims=[2], seeds=1, base={"data": str(small_data)})
    with pytest.raises(RunError, match="settings; choose another --out"):
        compare(other, tmp_path)
    assert (tmp_path / "compare.yaml").read_bytes() == kept


def test_its_data_may_move_but_not_change(small_data: Path, tmp_path: Path) -> None:
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    few = {"dims": [2], "seeds": 1, "learning_rates": [0.02]}
    shutil.copytree(small_data, moved)
    before = compare(config(small_data, **few), tmp_path / "out", jobs=1)
    after = compare(config(moved, **few), tmp_path / "out", jobs=1)
    assert after.rows() == before.rows()
    schema = PreparedDataset(small_data).schema
    prepare(
        SyntheticSource(SyntheticConfig(rows=schema.splits["train"].rows)), changed,
        split=SplitRule(seed=1),
    )  # fmt: skip
    with pytest.raises(RunError, match="changed"):
        compare(config(changed, **few), tmp_path / "out", jobs=1)
    assert compare(config(moved, **few), tmp_path / "out", jobs=1).rows() == before.rows()


def test_a_run_that_fails_is_named(
    small_data: Path, tmp_path: Path, rewrite: Callable[[Path, str, np.ndarray], None]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    rewrite(data, "train/dense.npy", np.full((1_800, 2), np.nan, np.float32))
    with pytest.raises(RunError, match=r"slt-d2: .* dense feature 'I1'"):
        compare(config(data, dims=[2], seeds=1), tmp_path / "out")


def test_a_step_size_that_diverges_is_left_out(small_data: Path, tmp_path: Path) -> None:
    base = {
        "data": str(small_data),
        "model": {"bottom_mlp": [8], "top_mlp": [8]},
        "optimizer": {"tables": {"name": "sgd"}, "dense": {"name": "sgd"}},
        "training": {"epochs": 1, "batch_size": 128, "threads": 1},
    }
    one = config(small_data, base=base, dims=[2], seeds=1, learning_rates=[1e30, 0.05])
    comparison = compare(one, tmp_path)
    assert [arm.learning_rate for arm in comparison.arms] == [0.05, 0.05]
    assert comparison.to_dict()["diverged"] == ["slt-d2-lr1e+30", "mlet-k16-d2-lr1e+30"]
    assert any("Diverged, and left out: slt-d2-lr1e+30" in text for text in comparison.verdict())
    again = compare(one, tmp_path)
    assert [arm.runs for arm in again.arms] == [arm.runs for arm in comparison.arms]
    hot = config(small_data, base=base, dims=[2], seeds=1, learning_rates=[1e30])
    with pytest.raises(RunError, match=r"no learning rate works .* lower optimizer\.tables"):
        compare(hot, tmp_path / "hot")


def test_statements_follow_from_the_numbers(small_data: Path) -> None:
    auc = {
        (SLT, 2): [0.70, 0.71, 0.72], (SLT, 4): [0.72, 0.73, 0.74],
        (SLT, 8): [0.74, 0.75, 0.76], (mlet(16), 2): [0.72, 0.73, 0.74],
        (mlet(16), 4): [0.70, 0.71, 0.72], (mlet(16), 8): [0.74, 0.76, 0.77],
    }  # fmt: skip
    study, panel = made_up(small_data, auc, spread=0.01, at_edge=True)
    result = StudyResult(study, (panel,), (), {"clicks": panel.schema}, 1.0, 1, "a machine")
    comparison = Comparison(config(small_data), result)
    two = panel.curve(mlet(16))[0]
    assert panel.gain(two).mean == pytest.approx(0.02)
    assert panel.gain(two).margin == pytest.approx(0, abs=1e-9), "paired by seed"
    found = comparison.to_dict()["arms"]
    reductions = {a["dim"]: a["test"]["reduction"] for a in found if a["method"] == "mlet"}
    assert reductions[2]["reduction"] == pytest.approx(2)
    assert reductions[4]["reduction"] == 0.5
    assert (reductions[8]["reduction"], reductions[8]["kind"]) == (1, "above")
    for one in reductions.values():
        assert one["low"]["reduction"] <= one["reduction"] <= one["high"]["reduction"]
    assert found[-1]["rare"]["reduction"] is None, "no AUC of rare rows, no reduction"
    first, beat, worse, unclear, edge, unseen = comparison.verdict()
    assert unseen == "clicks: 0.0% of the test rows hold a category that training never saw."
    assert first.startswith("In one sentence: two layers help at some dimensions")
    assert "beat SLT" in beat
    assert "d=2 (+0.0200)" in beat
    assert "was worse" in worse
    assert "d=4 (-0.0200)" in worse
    assert "cannot be told apart" in unclear
    assert "d=8" in unclear
    assert "a wider grid may serve these better" in edge
    json.loads(comparison.to_json())


def test_table(finished: tuple[Path, Comparison]) -> None:
    _, comparison = finished
    rows = comparison.rows()
    assert [row[:3] for row in rows] == [
        ("SLT", "2", ""), ("MLET", "2", "16"), ("SLT", "4", ""), ("MLET", "4", "16"),
    ]  # fmt: skip
    assert len(comparison.markdown().splitlines()) == 6
    assert all(len(row) == len(comparison.columns) for row in rows)
    assert human_bytes(1_000) == "1000 B"
    assert human_bytes(1_536) == "1.5 KiB"
    assert human_bytes(5 * 2**30) == "5.0 GiB"


class Links(HTMLParser):
    """Collects what a page would fetch, and whether its tags are balanced."""

    VOID = frozenset({"meta", "br", "link", "img", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.fetched.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_report_is_one_page_that_needs_no_network(
    finished: tuple[Path, Comparison], tmp_path: Path
) -> None:
    _, comparison = finished
    page = write_comparison(comparison, tmp_path).read_text()
    parser = Links()
    parser.feed(page)
    assert parser.fetched == []
    assert parser.open == []
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    for row in comparison.rows():
        for cell in row:
            assert cell.replace("<", "&lt;").replace(">", "&gt;") in page
    for sentence in comparison.verdict():
        assert sentence.split("(")[0] in page
    svg = (tmp_path / "curves.svg").read_text()
    drawn = [re.findall(r'\bd="([^"]+)"', text) for text in (svg, page)]
    assert drawn[0] == drawn[1] != []
    assert "MLET, k = 16" in svg
    assert "MLET, k = 16" in page
