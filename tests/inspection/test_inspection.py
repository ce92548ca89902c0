"""``mlet inspect`` and ``mlet suggest-k`` through the installed command line, and their numbers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mlet
from mlet.data import PreparedDataset
from mlet.errors import RunError
from mlet.inspection import category_gains, inspect_checkpoint, inspect_run
from mlet.inspection.gains import _gains
from mlet.inspection.page import _rare_share, write_page
from mlet.metrics import row_losses
from mlet.models import DLRMConfig
from mlet.theory import update_energy
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.load import load_trained
from mlet.training.predict import predict
from mlet.training.run import Progress
from mlet.training.spectra import SpectraRecorder

Run = Callable[..., str]


@pytest.fixture
def run(mlet: Callable[..., subprocess.CompletedProcess[str]]) -> Run:
    """All that ``mlet`` says."""

    def both(*words: object, code: int = 0) -> str:
        result = mlet(*words, code=code)
        return result.stdout + result.stderr

    return both


def config(data: Path, inner_dim: int | None) -> RunConfig:
    return RunConfig(
        data=data,
        model=DLRMConfig(dim=4, inner_dim=inner_dim, bottom_mlp=[8], top_mlp=[8]),
        optimizer=OptimizersConfig.same("adagrad"),
        training=TrainingConfig(
            batch_size=64, epochs=2, threads=1, patience=None, record_spectra=True
        ),
    )


@pytest.fixture(scope="module")
def runs(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A two-layer run and an ordinary one on the same data."""
    folder = tmp_path_factory.mktemp("runs")
    train(config(small_data, 16), folder / "mlet")
    train(config(small_data, None), folder / "slt")
    return folder / "mlet", folder / "slt"


def test_a_record_is_made_only_within_two_percent_of_the_training_time() -> None:
    def affordable(*costs: float, seconds: float) -> bool:
        records = [{"step": 0, "seconds": cost, "tables": {}} for cost in costs]
        return SpectraRecorder.affordable(Progress(seconds=seconds, spectra=records))

    assert not affordable(0.02, seconds=0.99), "one costs 0.02 s"
    assert affordable(0.02, seconds=1.01), "the start itself does not count"
    assert not affordable(0.02, 0.02, seconds=1.99)
    assert affordable(0.02, 0.02, seconds=2.01)
    assert not affordable(0.02, 0.02, 0.03, seconds=3.9), "the dearest so far is what to expect"


def test_the_history_holds_start_and_end(runs: tuple[Path, Path]) -> None:
    lines = (runs[0] / "spectra.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[0]["step"] == 0
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert records[-1]["step"] == summary["steps"]
    for table in records[0]["tables"].values():
        assert set(table) == {"product", "inner", "projection", "imbalance", "norms"}
        assert len(table["inner"]["values"]) == 16
    plain = json.loads((runs[1] / "spectra.jsonl").read_text().splitlines()[-1])
    assert all(set(table) == {"product", "norms"} for table in plain["tables"].values())


def test_inspect_writes_a_self_contained_page(
    runs: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    page = tmp_path / "page.html"
    text = run("inspect", runs[0], "--baseline", runs[1], "--out", page)
    assert re.search(r"directions in use: \d+ of 16", text)
    assert f"page: {page}" in text.replace("\n", "")
    html = page.read_text()
    assert not re.search(r'(src|href)="(https?:)?//', html), "nothing is fetched"
    inspection = inspect_run(*runs)
    for table in inspection.tables:
        assert f"<h2>{table.name}</h2>" in html
    assert html.count("<svg") == 4 * min(6, len(inspection.tables))
    ids = re.findall(r'id="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "figures do not share names"
    assert "Who gains" in html
    alone = tmp_path / "alone.html"
    run("inspect", runs[0], "--out", alone)
    assert "Who gains" not in alone.read_text()


def test_inspect_takes_any_checkpoint(tmp_path: Path, run: Run) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(mlet.Embedding(30, 2, inner_dim=8), torch.nn.Linear(2, 1))
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    text = run("inspect", tmp_path / "checkpoint.pt", "--out", tmp_path / "page.html")
    assert "two-layer tables of" in text
    (table,) = inspect_checkpoint(tmp_path / "checkpoint.pt").tables
    assert (table.n, table.k, table.d, table.flow) == (30, 8, 2, None)
    values = torch.linalg.svdvals(model[0].inner.detach().double())
    torch.testing.assert_close(table.reweighting.inner_values, values, rtol=1e-5, atol=1e-6)


def test_gains_are_the_differences_of_logloss(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    columns = data.split("test")
    labels = np.asarray(columns.labels["label"], np.float64)
    generator = np.random.default_rng(0)
    theirs, mine = generator.random(len(labels)), generator.random(len(labels))
    found = category_gains(data, row_losses(labels, theirs), row_losses(labels, mine))
    field, ids = data.schema.one_valued[0].name, columns.ids[0]

    def loss(p: np.ndarray, rows: np.ndarray) -> float:
        return float(-np.log(np.where(labels[rows] > 0, p[rows], 1 - p[rows])).mean())

    gains = found[field]
    seen = np.unique(ids)
    for place, category in enumerate(seen.tolist()):
        rows = ids == category
        assert gains.rows[place] == rows.sum()
        assert gains.counts[place] == data.training_counts[field][category]
        assert gains.gains[place] == pytest.approx(loss(theirs, rows) - loss(mine, rows))
    assert sum(gains.group_rows) == len(labels)
    counts = data.training_counts[field][ids]
    rows = (counts >= 1) & (counts < 10)
    for name in ["1-9"]:
        place = gains.groups.index(name)
        assert gains.group_gains[place] == pytest.approx(loss(theirs, rows) - loss(mine, rows))
        # Rows of one category are alike: it is categories that are drawn (cluster-robust variance
        # with its small-sample factor C / (C − 1)).
        categories = np.unique(ids[rows])
        mean = gains.group_gains[place]
        residuals = [
            (ids == c).sum() * (loss(theirs, ids == c) - loss(mine, ids == c) - mean)
            for c in categories
        ]
        factor = len(categories) / (len(categories) - 1)
        expected = 1.96 * np.sqrt(factor * np.square(residuals).sum()) / rows.sum()
        assert gains.group_margins[place] == pytest.approx(expected)


def test_suggest_k_within_a_budget_gives_settings_that_train(
    runs: tuple[Path, Path], small_data: Path, tmp_path: Path, run: Run
) -> None:
    answer = tmp_path / "k.json"
    text = run("suggest-k", runs[0], "--json", answer)
    free = json.loads(answer.read_text())
    assert free["uniform"]["16"] == pytest.approx(1.0)
    run("suggest-k", runs[0], "--json", answer, "--keep", "1", "--memory-budget", "1G")
    everything = json.loads(answer.read_text())
    assert everything["bytes"] >= free["bytes"]
    tight = free["bytes"] - 1
    if free["inner_dims"] != dict.fromkeys(free["inner_dims"], 8):
        run("suggest-k", runs[0], "--json", answer, "--memory-budget", f"{tight}")
        assert json.loads(answer.read_text())["bytes"] <= tight
    setting = re.search(r"--set '(model.inner_dims=\{[^']+\})'", text.replace("\n", " "))
    assert setting is not None
    run(
        "train", small_data, "--out", tmp_path / "run", "--dim", 4, "--inner-dim", 16,
        "--epochs", 1, "--set", setting[1],
    )  # fmt: skip
    tables = inspect_run(tmp_path / "run").tables
    assert {table.name: table.k for table in tables} == free["inner_dims"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "{slt}"], "no two-layer table to inspect (was it trained with inner_dim?)"),
        (["inspect", "{none}"], "no such file"),
        (["inspect", "{folder}"], "not a run (no config.yaml)"),
        (["suggest-k", "{slt}"], "no two-layer table; train with --inner-dim"),
        (["suggest-k", "{mlet}", "--memory-budget", "much"], "expected a size, as 512M or 2G"),
        (["suggest-k", "{mlet}", "--memory-budget", "1K"], "too small: the smallest inner"),
        (["inspect", "{file}", "--baseline", "{slt}"], "a checkpoint knows no data set"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(
    runs: tuple[Path, Path], tmp_path: Path, words: list[str], message: str, run: Run
) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    places = {
        "mlet": runs[0], "slt": runs[1], "none": tmp_path / "none.pt", "folder": tmp_path,
        "file": tmp_path / "plain.pt",
    }  # fmt: skip
    text = run(*(word.format(**places) for word in words), code=2)
    assert message in " ".join(text.split())
    assert "Traceback" not in text


def test_an_unknown_field_in_inner_dims_is_named(
    small_data: Path, tmp_path: Path, run: Run
) -> None:
    text = run(
        "train", small_data, "--out", tmp_path / "run", "--set", "model.inner_dims={nobody: 8}",
        code=2,
    )  # fmt: skip
    assert "inner_dims: no field 'nobody'; the fields are" in " ".join(text.split())


def test_a_baseline_s_history_and_gains_are_its_own(runs: tuple[Path, Path]) -> None:
    mine, theirs = runs
    inspection = inspect_run(mine, theirs)
    assert inspection.history == RunDirectory(mine).spectra()
    assert inspection.baseline_history == RunDirectory(theirs).spectra()
    model, data = load_trained(RunDirectory(mine))
    baseline, _ = load_trained(RunDirectory(theirs))
    columns = data.split("test")
    labels = columns.labels["label"]
    losses = [model.task.row_losses(labels, predict(m, columns)) for m in (baseline, model)]
    for name, gains in inspection.gains.items():
        mean = (gains.gains * gains.rows).sum() / gains.rows.sum()
        assert mean == pytest.approx((losses[0] - losses[1]).mean()), name
    for table in inspection.tables:
        counts = torch.from_numpy(data.training_counts[table.name])
        expected = update_energy(model.embedding.factors(table.name), counts)
        torch.testing.assert_close(table.energy.shares, expected.shares)


def test_one_category_has_no_interval() -> None:
    gains = _gains(np.array([0, 5, 7]), np.array([4, 2, 2]), np.array([1.0, 0.5, 0.1]))
    margins = dict(zip(gains.groups, gains.group_margins, strict=True))
    assert np.isnan(margins["0"])
    assert [np.isfinite(margin) for name, margin in margins.items() if name != "0"] == [True]


def test_the_largest_tables_are_shown(tmp_path: Path) -> None:
    sizes = {f"t{n}": n for n in range(20, 28)}
    model = torch.nn.ModuleDict(
        {name: mlet.Embedding(n, 2, inner_dim=4) for name, n in sizes.items()}
    )
    torch.save(model.state_dict(), tmp_path / "m.pt")
    write_page(inspect_checkpoint(tmp_path / "m.pt"), tmp_path / "page.html", tmp_path / "figures")
    shown = {path.name.partition("-")[0] for path in (tmp_path / "figures").iterdir()}
    assert shown == {f"t{n}" for n in range(22, 28)}


def test_the_rarest_are_those_that_occur(runs: tuple[Path, Path]) -> None:
    table = next(t for t in inspect_run(runs[0]).tables if t.flow and t.flow.names[0] == "0")
    assert _rare_share(table) == float(table.flow.shared[1])


@pytest.mark.parametrize("damage", ["missing", "empty", "other", "link"])
def test_a_history_that_was_recorded_is_not_left_out_in_silence(
    runs: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    file = tmp_path / "run" / "spectra.jsonl"
    if damage == "other":
        file.write_text(file.read_text().replace("0.1", "0.2", 1))
    elif damage == "empty":
        file.write_text("")
    else:
        file.unlink()
    if damage == "link":
        file.symlink_to("nowhere")
    with pytest.raises(RunError, match=r"spectra\.jsonl: .*(damaged|missing).*train the run again"):
        inspect_run(tmp_path / "run")
