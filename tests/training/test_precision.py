"""Precision is chosen when a run is collapsed; it is no setting of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlet.errors import ConfigError, ConversionError
from mlet.export import load_collapsed
from mlet.nn.compression import PRECISIONS
from mlet.studies import StudyConfig
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.collapse import collapse_run
from mlet.training.load import load_trained
from mlet.training.predict import predict

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]  # noqa: F821


def test_one_run_is_collapsed_at_every_precision(
    mlet: Mlet, small_data: Path, tmp_path: Path
) -> None:
    words = ("--model", "deepfm", "--dim", 4, "--inner-dim", 8, "--epochs", 1)
    mlet("train", small_data, "--out", "run", *words)
    trained, data = load_trained(RunDirectory(tmp_path / "run"))
    rows = data.split("valid")
    sizes = {}
    for precision in PRECISIONS:
        out = f"{precision}.safetensors"
        mlet("collapse", "run", "--out", out, "--precision", precision)
        model, _, _ = load_collapsed(tmp_path / out)
        expected = trained.collapse(precision)
        for field in data.schema.fields:
            found = model.embedding.table(field.name)
            torch.testing.assert_close(found, expected.embedding.table(field.name))
        assert predict(model, rows).tolist() == pytest.approx(predict(expected, rows).tolist())
        mlet("evaluate", out, "--data", small_data)
        sizes[precision] = (tmp_path / out).stat().st_size
    assert sizes["float32"] > sizes["int8"] > sizes["int4"]
    assert sizes["float32"] > sizes["float16"]
    mlet("collapse", "run", "--out", "default.safetensors")
    names = ("default.safetensors", "float32.safetensors")
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1


def test_as_a_setting_it_says_what_replaced_it(mlet: Mlet, small_data: Path) -> None:
    words = ("train", small_data, "--out", "run", "--set")
    error = mlet(*words, "model.quantize=int8", code=2).stderr
    assert "mlet collapse RUN --precision int8" in error
    # Configurations of mlet 0.1 name it even where nothing is quantized.
    values = {"data": "d", "model": {"name": "fm", "quantize": None}}
    assert "quantize" not in RunConfig.parse(values, "test").model_dump()["model"]


def test_methods_that_are_served_in_another_way_share_their_runs(small_data: Path) -> None:
    peers = {
        "int8": {"quantize": "int8"},
        "mlet-int4": {"inner_dim": 8, "precision": "int4"},
        "wide": {"inner_dim": 16, "precision": "int8"},
    }
    values = {
        "datasets": {"clicks": {"prepared": str(small_data)}},
        "models": ["fm"],
        "optimizers": ["adagrad"],
        "dims": [2],
        "inner_dims": [8],
        "mlet": {},
        "peers": peers,
    }
    study = StudyConfig.parse(values, "study")
    trained = {arm.method.name: study.trained(arm).method.name for arm in study.arms()}
    assert trained == {
        "slt": "slt", "mlet-k8": "mlet-k8", "int8": "slt", "mlet-int4": "mlet-k8", "wide": "wide",
    }  # fmt: skip
    assert [study.precisions(arm) for arm in study.arms()] == [
        ["float32", "int8"], ["float32", "int4"],
        ["float32", "int8"], ["float32", "int4"], ["int8"],
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match="no precision 'int2' of float32, float16, int8, int4, pq8"
    ):
        StudyConfig.parse({**values, "peers": {"a": {"precision": "int2"}}}, "study")


def test_compressed_tables_are_not_said_to_be_quantized(small_data: Path, tmp_path: Path) -> None:
    compression = {"name": "hashing", "collisions": 2}
    config = RunConfig.parse(
        {
            "data": str(small_data),
            "model": {"name": "fm", "dim": 4, "compression": compression},
            "training": {"epochs": 1, "threads": 1},
        },
        "test",
    )
    train(config, tmp_path / "run")
    with pytest.raises(ConversionError, match="int8: there is no ordinary table to quantize"):
        collapse_run(tmp_path / "run", tmp_path / "out.safetensors", precision="int8")
    assert not (tmp_path / "out.safetensors").exists()
