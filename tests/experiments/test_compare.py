"""Comparisons: alike budgets, resumed work, numbers that add up, a page that stands alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mlet.data import PreparedDataset
from mlet.errors import RunError
from mlet.experiments import CompareConfig, Comparison, compare, write_report
from mlet.experiments.compare import Arm
from mlet.experiments.results import ArmResult, RunScores
from mlet.experiments.table import COLUMNS, human_bytes, markdown, table_rows
from mlet.export import load_collapsed
from mlet.metrics import Scores
from mlet.training import RunConfig, RunDirectory
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


def test_every_arm_gets_the_same_budget(finished: tuple[Path, Comparison]) -> None:
    out, _ = finished
    runs = sorted(path.name for path in (out / "runs").iterdir())
    arms = [
        f"{method}-d{dim}-lr{rate}-seed{seed}"
        for method in ("mlet-k16", "slt")
        for dim in (2, 4)
        for rate in (0.01, 0.1)
        for seed in (0, 1)
    ]
    assert runs == sorted(arms)
    for name in runs:
        run = RunDirectory(out / "runs" / name)
        settings = run.config()
        assert run.summary().steps == 15
        assert settings.training.model_dump(exclude={"seed"}) == (
            RunDirectory(out / "runs" / runs[0]).config().training.model_dump(exclude={"seed"})
        )
        assert name.startswith("slt") == (settings.model.inner_dim is None)


def test_tuning_keeps_the_ratio_of_the_dense_layers_step_size(small_data: Path) -> None:
    optimizer = {"tables": {"learning_rate": 0.02}, "dense": {"learning_rate": 0.005}}
    base = RunConfig.parse({"data": str(small_data), "optimizer": optimizer}, "test")
    tuned = Arm(4, 16, 0.08).config(base, seed=1).optimizer
    assert tuned.tables.learning_rate == 0.08
    assert tuned.dense.learning_rate == pytest.approx(0.02)


def test_scores_are_those_of_the_collapsed_models_on_the_test_split(
    finished: tuple[Path, Comparison], small_data: Path
) -> None:
    out, comparison = finished
    data = PreparedDataset(small_data)
    columns = data.split("test")
    rare = data.rarest_counts("test") < 10
    assert comparison.rare_rows == rare.sum()
    for arm in comparison.arms:
        method = "slt" if arm.inner_dim is None else "mlet-k16"
        tried = {}
        for rate in (0.01, 0.1):
            runs = [out / "runs" / f"{method}-d{arm.dim}-lr{rate}-seed{seed}" for seed in (0, 1)]
            tried[rate] = np.mean([RunDirectory(run).summary().valid["auc"] for run in runs])
        assert arm.learning_rate == max(tried, key=tried.__getitem__)
        for run in arm.runs:
            name = f"{method}-d{arm.dim}-lr{arm.learning_rate:g}-seed{run.seed}"
            model, _, _ = load_collapsed(out / "runs" / name / "model.safetensors")
            p = predict(model, columns)
            y = np.asarray(columns.labels)
            assert run.test.auc == pytest.approx(roc_auc_score(y, p))
            assert run.rare.auc == pytest.approx(roc_auc_score(y[rare], p[rare]))


def test_called_again_it_continues(small_data: Path, tmp_path: Path) -> None:
    first = compare(config(small_data, dims=[2]), tmp_path)
    files = sorted((tmp_path / "runs").rglob("model.safetensors"))
    stamps = [path.stat().st_mtime_ns for path in files]
    unfinished = RunDirectory(files[0].parent)
    unfinished.summary_file.unlink()  # as if killed before its last step
    again = compare(config(small_data, dims=[2, 4]), tmp_path)
    assert [path.stat().st_mtime_ns for path in files[1:]] == stamps[1:]
    for old, new in zip(first.arms, again.arms, strict=False):
        assert old.values("test", "auc") == new.values("test", "auc")
    other = config(small_data, dims=[2], seeds=1, base={"data": str(small_data)})
    with pytest.raises(RunError, match="holds a run with other settings; choose another --out"):
        compare(other, tmp_path)


def test_a_run_that_fails_is_named(
    small_data: Path, tmp_path: Path, rewrite: Callable[[Path, str, np.ndarray], None]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    rewrite(data, "train/dense.npy", np.full((1_800, 2), np.nan, np.float32))
    with pytest.raises(RunError, match=r"run slt-d2-seed0: .* dense feature 'I1'"):
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
    assert comparison.diverged == ("slt-d2-lr1e+30", "mlet-k16-d2-lr1e+30")
    assert "Diverged, and left out: slt-d2-lr1e+30" in comparison.verdict()[-1]
    again = compare(one, tmp_path)
    assert again.arms == comparison.arms
    with pytest.raises(RunError, match=r"no learning rate works: .* lower optimizer\.tables"):
        compare(config(small_data, base=base, dims=[2], seeds=1, learning_rates=[1e30]), tmp_path)


def made_up(finished: Comparison, auc: dict[tuple[int, int | None], list[float]]) -> Comparison:
    """The finished comparison's settings with other numbers, for the arithmetic alone."""
    arms = []
    for (dim, inner), values in auc.items():
        runs = [
            RunScores(seed, Scores(v, 0.5, 1.0), Scores(float("nan"), 0.5, 1.0), v, 10, 2.0)
            for seed, v in enumerate(values)
        ]
        arms.append(ArmResult(dim, inner, 0.05, tuple(runs), 4 * dim))
    return Comparison(
        finished.schema, finished.base, tuple(arms), (0.05, 0.5), (), 10, 0, 1, 1.0, "a machine"
    )


def test_statements_follow_from_the_numbers(finished: tuple[Path, Comparison]) -> None:
    comparison = made_up(
        finished[1],
        {
            (2, None): [0.70, 0.71], (4, None): [0.72, 0.73], (8, None): [0.74, 0.75],
            (2, 16): [0.72, 0.73], (4, 16): [0.70, 0.71], (8, 16): [0.74, 0.76],
        },
    )  # fmt: skip
    two, four, eight = comparison.curve(16)
    assert comparison.gain(two).mean == pytest.approx(0.02)
    assert comparison.gain(two).margin == pytest.approx(0, abs=1e-9), "paired by seed"
    assert str(comparison.reduction(two)) == "2×"
    assert comparison.reduction(two, "rare") is None
    assert str(comparison.reduction(four)) == "0.5×"
    assert str(comparison.reduction(eight)) == "> 1×"
    beat, worse, unclear, edge = comparison.verdict()
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
    rows = table_rows(comparison)
    assert [row[:3] for row in rows] == [
        ("SLT", "2", ""), ("MLET", "2", "16"), ("SLT", "4", ""), ("MLET", "4", "16"),
    ]  # fmt: skip
    assert len(markdown(comparison).splitlines()) == 6
    assert all(len(row) == len(COLUMNS) for row in rows)
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
    page = write_report(comparison, tmp_path).read_text()
    parser = Links()
    parser.feed(page)
    assert parser.fetched == []
    assert parser.open == []
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    for row in table_rows(comparison):
        for cell in row:
            assert cell.replace("<", "&lt;").replace(">", "&gt;") in page
    for sentence in comparison.verdict():
        assert sentence.split("(")[0] in page
    svg = (tmp_path / "curves.svg").read_text()
    assert svg in page
    assert "MLET, k = 16" in svg
