"""``min_count`` of a model: what it trains is what data prepared with it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.synthetic import SyntheticConfig, SyntheticSource
from mlet.errors import ConfigError, RunError
from mlet.export import load_collapsed, to_onnx
from mlet.inspection import inspect_run
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.load import load_trained
from mlet.training.predict import predict
from mlet.training.rare_rows import own_rows
from mlet.training.start import ROW_NORM, start_from_co_occurrence


def config(data: Path, **model: object) -> RunConfig:
    values = {
        "data": str(data),
        "model": {"name": "deepfm", "dim": 4, "inner_dim": 8, "mlp": [8], **model},
        "training": {"epochs": 1, "batch_size": 256, "threads": 1, "record_spectra": True},
    }
    return RunConfig.parse(values, "test")


@pytest.fixture(scope="module")
def shared_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rare") / "run"
    train(config(small_data, min_count=4), path)
    return path


def test_it_trains_what_data_prepared_so_trains(
    shared_run: Path, small_config: SyntheticConfig, tmp_path: Path
) -> None:
    split = SplitRule(valid=0.15, test=0.25)
    prepare(SyntheticSource(small_config), tmp_path / "data", split=split, min_count=4)
    summary = train(config(tmp_path / "data"), tmp_path / "run")
    mine = RunDirectory(shared_run)
    # Dimensions of one run are of as many rows, and what is drawn for them is the same.
    assert mine.summary().valid == summary.valid
    own = mine.config().model.own_rows
    assert own == {
        field.name: field.num_categories - 1
        for field in PreparedDataset(tmp_path / "data").schema.fields
    }
    for name in ("steps", "best_step", "training_bytes", "model_bytes"):
        assert getattr(mine.summary(), name) == getattr(summary, name)


def test_what_is_served_is_what_was_trained(
    shared_run: Path, small_data: Path, tmp_path: Path
) -> None:
    trained, data = load_trained(RunDirectory(shared_run))
    served, _, schema = load_collapsed(RunDirectory(shared_run).model_file)
    columns = data.split("test")
    expected = predict(trained, columns)
    np.testing.assert_allclose(predict(served, columns), expected, atol=1e-6)
    entries = {f.name: f.num_categories for f in data.schema.fields}
    assert {f.name: f.num_embeddings for f in served.embedding.fields} == entries
    done = to_onnx(served, schema, tmp_path / "model.onnx", tables="pq2")
    assert done.largest_difference <= 1e-5
    with pytest.raises(RunError, match=r"field 'C1': its \d+ categories share \d+ rows"):
        inspect_run(shared_run)


def test_shared_rows_begin_with_the_mean_of_their_categories(
    shared_run: Path, small_data: Path
) -> None:
    model, data = load_trained(RunDirectory(shared_run))
    start_from_co_occurrence(model, data)
    from mlet.data.co_occurrence import kept_co_occurrence_vectors

    vectors = kept_co_occurrence_vectors(data, 8)["C1"]
    rows = model.embedding.factors("C1").inner
    own = RunDirectory(shared_run).config().model.own_rows["C1"]
    rare = torch.cat([vectors[:1], vectors[own + 1 :]])
    torch.testing.assert_close(rows[0], ROW_NORM * rare.mean(dim=0))
    torch.testing.assert_close(rows[1:], ROW_NORM * vectors[1 : own + 1])


def test_own_rows_are_those_up_to_the_last_frequent_one(small_data: Path) -> None:
    counts = np.array([0, 9, 5, 3, 3, 2, 1])
    assert [own_rows(counts, m) for m in (2, 3, 4, 9, 10)] == [5, 4, 2, 1, 0]
    # Where data was added to, ids are no longer in the order of counts.
    assert own_rows(np.array([0, 9, 1, 4, 1]), 4) == 3
    both = {"min_count": 2, "compression": {"name": "hashing"}, "inner_dim": None}
    with pytest.raises(ConfigError, match="min_count: rows of ordinary tables are shared"):
        config(small_data, **both)
