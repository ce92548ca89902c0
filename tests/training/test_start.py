"""Runs whose tables start from co-occurrences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from mlet.data import PreparedDataset, prepare
from mlet.data.co_occurrence import co_occurrence_vectors
from mlet.data.readers import TableSchema, TableSource
from mlet.errors import ConfigError
from mlet.models import ModelConfig, build_model
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.observer import SilentObserver
from mlet.training.start import ROW_NORM, start_from_co_occurrence


def config(data: Path, **model: Any) -> RunConfig:
    values = {"name": "deepfm", "dim": 3, "mlp": [8], "init": "co_occurrence", **model}
    training = {"epochs": 1, "batch_size": 128, "threads": 1}
    return RunConfig.parse({"data": str(data), "model": values, "training": training}, "test")


@pytest.mark.parametrize("inner_dim", [None, 6])
def test_rows_are_vectors_of_co_occurrence(small_data: Path, inner_dim: int | None) -> None:
    data = PreparedDataset(small_data)
    model = build_model(config(small_data, inner_dim=inner_dim, init_scale=2.0).model, data.schema)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start_from_co_occurrence(model, data)
    vectors = co_occurrence_vectors(data, inner_dim or 3)
    for name, factors in model.embedding.named_factors().items():
        torch.testing.assert_close(factors.inner, 2 * ROW_NORM * vectors[name])
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert all(name.endswith(("inner", "weight")) for name in changed)
    assert not any(name.startswith("first_order") for name in changed)
    with torch.no_grad():
        rows = [model.embedding.table(name)[1:] for name in vectors]
    assert all(table.norm(dim=1).median() > 0 for table in rows)


def test_beside_two_layer_tables_ordinary_ones_begin_as_ever(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    first, *others = (field.name for field in data.schema.fields)
    settings = config(small_data, inner_dim=6, inner_dims={first: None}).model
    model = build_model(settings, data.schema)
    before = model.embedding.table(first)
    start_from_co_occurrence(model, data)
    assert torch.equal(model.embedding.table(first), before)
    vectors = co_occurrence_vectors(data, 6)
    for name in others:
        inner = model.embedding.named_factors()[name].inner
        torch.testing.assert_close(inner, ROW_NORM * vectors[name])


def test_the_only_field_keeps_rows_as_they_were_drawn(tmp_path: Path) -> None:
    """It goes with no other, and some models would never move from rows of zeros."""
    numbers = range(600)
    rows = pl.DataFrame({"user": [i % 200 for i in numbers], "click": [i % 3 % 2 for i in numbers]})
    rows.write_csv(tmp_path / "rows.csv")
    source = TableSource([tmp_path / "rows.csv"], TableSchema(label="click", categorical=["user"]))
    prepare(source, tmp_path / "data")
    data = PreparedDataset(tmp_path / "data")
    model = build_model(config(tmp_path / "data", inner_dim=6).model, data.schema)
    start_from_co_occurrence(model, data)
    assert (model.embedding.named_factors()["user"].inner.norm(dim=1) > 0).all()


class _Stop(SilentObserver):
    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, loss: float, rows: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 7])
def test_a_resumed_run_does_not_start_again(small_data: Path, tmp_path: Path, after: int) -> None:
    run = config(small_data, inner_dim=6, table_bias=True)
    train(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "stopped", _Stop(after))
    resume(tmp_path / "stopped")
    models = [RunDirectory(tmp_path / name).model_file for name in ("whole", "stopped")]
    assert models[0].read_bytes() == models[1].read_bytes()
    plain = config(small_data, inner_dim=6, table_bias=True, init="variance_matched")
    train(plain, tmp_path / "plain")
    assert RunDirectory(tmp_path / "plain").model_file.read_bytes() != models[0].read_bytes()


def test_compressed_tables_have_no_such_rows() -> None:
    values = {"name": "dlrm", "init": "co_occurrence", "compression": {"name": "hashing"}}
    with pytest.raises(ConfigError, match="co_occurrence fills the rows"):
        ModelConfig.parse(values, "model")
