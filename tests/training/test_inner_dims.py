"""Runs whose inner dimensions are chosen from the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlet.data import PreparedDataset
from mlet.errors import ConfigError
from mlet.models import build_model
from mlet.nn.inner_dim import TableSize, choose_inner_dims
from mlet.training import RunConfig, RunDirectory, resume, train, with_inner_dims


def config(data: Path, dim: int = 2, **model: Any) -> RunConfig:
    values = {"name": "dlrm", "dim": dim, "bottom_mlp": [8], "top_mlp": [8], "inner_dim": "auto"}
    training = {"epochs": 1, "batch_size": 256, "threads": 1}
    return RunConfig.parse(
        {"data": str(data), "model": {**values, **model}, "training": training}, "test"
    )


def expected(data: PreparedDataset, dim: int, budget: int | None = None) -> dict[str, int | None]:
    tables = {
        field.name: TableSize(field.num_categories, dim, data.training_counts[field.name])
        for field in data.schema.fields
    }
    return {name: one.value for name, one in choose_inner_dims(tables, budget=budget).items()}


def test_every_field_gets_its_own(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    wanted = expected(data, 2)
    assert set(wanted.values()) == {64, None}, "the data have fields of both kinds"
    model = with_inner_dims(config(small_data)).model
    built = build_model(model, data.schema)
    assert {field.name: field.inner_dim for field in built.embedding.fields} == wanted
    assert model.inner_dim in (64, None)


def test_what_is_named_stays(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    first, second, *_ = (field.name for field in data.schema.fields)
    own = {first: 7, second: None}
    model = with_inner_dims(config(small_data, inner_dims=own)).model
    built = build_model(model, data.schema)
    found = {field.name: field.inner_dim for field in built.embedding.fields}
    assert found == {**expected(data, 2), **own}


def test_a_budget_is_kept_to(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    sizes = [field.num_categories for field in data.schema.fields]
    budget = 4 * 64 * max(sizes)
    wanted = expected(data, 2, budget)
    assert wanted != expected(data, 2)
    built = build_model(with_inner_dims(config(small_data, budget=budget)).model, data.schema)
    assert {field.name: field.inner_dim for field in built.embedding.fields} == wanted


def test_a_budget_that_nothing_keeps_to_is_refused(small_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.budget: 1000 is what inner_dim: auto keeps to"):
        with_inner_dims(config(small_data, budget=1_000, inner_dim=8))


def test_wide_tables_stay_ordinary_and_begin_so(small_data: Path) -> None:
    model = with_inner_dims(config(small_data, 32, init="co_occurrence", table_bias="auto")).model
    assert model.table_bias is False, "of the recipe nothing is left, as with inner_dim: null"
    model = with_inner_dims(config(small_data, 32, init="co_occurrence", table_bias=True)).model
    assert (model.inner_dim, model.inner_dims) == (None, {})
    assert (model.init, model.table_bias) == ("variance_matched", True)


def test_a_run_keeps_what_was_chosen(small_data: Path, tmp_path: Path) -> None:
    auto = config(small_data, budget=40_000)
    train(auto, tmp_path / "run")
    kept = RunDirectory(tmp_path / "run").config()
    assert kept.model == with_inner_dims(auto).model
    assert kept.model.budget is None
    resume(tmp_path / "run")
    train(kept, tmp_path / "again")
    files = [RunDirectory(tmp_path / name).model_file for name in ("run", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("wrong", [0, -1, "Auto", 2.5])
def test_what_is_no_inner_dimension(small_data: Path, wrong: object) -> None:
    with pytest.raises(ConfigError, match="an integer above 0, auto, or null for ordinary tables"):
        config(small_data, inner_dim=wrong)


def test_a_model_alone_cannot_choose(small_data: Path) -> None:
    with pytest.raises(ConfigError, match="with_inner_dims"):
        build_model(config(small_data).model, PreparedDataset(small_data).schema)


@pytest.mark.slow
def test_a_study_with_chosen_and_given_ones(mlet, small_data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "study.yaml").write_text(
        f"""
datasets: {{clicks: {{prepared: {small_data}}}}}
models: {{dlrm: {{bottom_mlp: [8], top_mlp: [8]}}}}
optimizers: [adagrad]
dims: [2, 32]
inner_dims: [64, auto]
seeds: 2
tuning: {{trials: 2}}
training: {{epochs: 1, batch_size: 256}}
resamples: 20
"""
    )
    for _ in range(2):  # the second finds all runs done
        mlet("sweep", "study.yaml", "--out", "out", "--jobs", "2")
    runs = tmp_path / "out" / "runs" / "clicks" / "dlrm" / "adagrad"
    for dim, known in ((2, {64, None}), (32, {None})):
        for run in (runs / f"mlet-auto-d{dim}").glob("*/config.yaml"):
            model = RunDirectory(run.parent).config().model
            assert {model.inner_dim, *model.inner_dims.values()} == known
    assert "| mlet-auto | 32 |" in (tmp_path / "out" / "tables.md").read_text()
