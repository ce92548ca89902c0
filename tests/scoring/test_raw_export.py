"""``mlet export --raw``: a file for ONNX Runtime alone that scores what `mlet.Predictor` scores."""

from __future__ import annotations

import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from click_rows import Trained

import mlet
from mlet.cli import main
from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import CriteoSource
from mlet.data.readers.criteo import CATEGORICAL, DENSE
from mlet.errors import ConfigError, ConversionError
from mlet.export import CollapsedModel, load_collapsed_model, save_collapsed, to_onnx
from mlet.models import DeepFMConfig, build_model

pytest.importorskip("onnx", reason="the extra 'onnx' is not installed: make test installs it")
import onnxruntime

APP = Path(__file__).parents[2] / "examples" / "serving" / "app.py"


def run(*arguments: object) -> int:
    """``mlet ARGUMENTS`` in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mlet", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    return int(stopped.value.code or 0)


def padded(bags: pl.Series) -> np.ndarray:
    width = max(map(len, bags), default=0)
    return np.array([[*bag, *[""] * (width - len(bag))] for bag in bags.to_list()], object)


def test_a_run(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "raw.onnx"
    words = ("--to", "onnx", "--raw", "--tables", "int8", "--int64", "item", "-o", path)
    assert run("export", trained.run, *words) == 0
    said = capsys.readouterr().out
    assert said.startswith("price, age, user, item, tags -> probability; largest difference from")
    session = onnxruntime.InferenceSession(path)
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "price": ("tensor(double)", ["batch"]),
        "age": ("tensor(double)", ["batch"]),
        "user": ("tensor(string)", ["batch"]),
        "item": ("tensor(int64)", ["batch"]),
        "tags": ("tensor(string)", ["batch", "tags.width"]),
    }
    told = json.loads(session.get_modelmeta().custom_metadata_map["mlet"])
    assert (told["tables"], told["inputs"]) == ("int8", [i.name for i in session.get_inputs()])
    assert told["raw"]["columns"] | {"tags": "texts"} == told["raw"]["columns"]
    found = load_collapsed_model(trained.run / "model.safetensors")
    served = found.model.collapse("int8")
    predictor = mlet.Predictor(
        CollapsedModel(served, found.config, found.schema, found.vocabularies), path
    )
    rows = trained.rows.with_columns(
        pl.when(pl.int_range(pl.len()) % 7 == 0).then(pl.lit("new")).otherwise("user").alias("user")
    )
    tags = (
        rows["tags"].fill_null("").str.split("|").list.eval(pl.element().filter(pl.element() != ""))
    )
    given = {
        "price": rows["price"].to_numpy(),
        "age": rows["age"].cast(pl.Float64).to_numpy(),
        "user": rows["user"].fill_null("").to_numpy().astype(object),
        "item": rows["item"].to_numpy(),
        "tags": padded(tags),
    }
    assert np.isnan(given["age"]).any()
    expected = predictor.predict(rows)
    (scores,) = session.run(None, given)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    for place in (0, 7, 8):
        (one,) = session.run(None, {n: values[place : place + 1] for n, values in given.items()})
        np.testing.assert_allclose(one, expected[place : place + 1], rtol=0, atol=1e-5)
    # The server of the examples takes such rows as JSON has them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", str(path))
        server: Any = SourceFileLoader("serving_app", str(APP)).load_module()
    some = rows.with_columns(tags)[:40]
    inputs = {name: json.loads(json.dumps(some[name].to_list())) for name in given}
    answer = server.score(server.Rows(inputs=inputs))
    np.testing.assert_allclose(answer["probability"], expected[:40], rtol=0, atol=1e-5)
    with pytest.raises(server.HTTPException, match="'a' is no list"):
        server.score(server.Rows(inputs={**inputs, "tags": ["a"] * 40}))


def test_criteo(criteo_sample: Path, tmp_path: Path) -> None:
    """Raw lines of a real log, as they are."""
    lines = criteo_sample.read_text().splitlines()[:2_000]
    (tmp_path / "train.txt").write_text("\n".join([*lines, ""]))
    prepare(
        CriteoSource([tmp_path / "train.txt"]),
        tmp_path / "data",
        split=SplitRule(by="order", valid=0.2, test=0.4),
        min_count=2,
    )
    data = PreparedDataset(tmp_path / "data")
    config = DeepFMConfig(dim=3, inner_dim=9, mlp=[4])
    torch.manual_seed(0)
    model = build_model(config, data.schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    vocabularies = {field.name: data.vocabulary(field.name) for field in data.schema.fields}
    path = tmp_path / "raw.onnx"
    to_onnx(model, data.schema, path, raw=True, vocabularies=vocabularies)
    found = CollapsedModel(model.collapse().eval(), config, data.schema, vocabularies)
    predictor = mlet.Predictor(found, path)
    session = onnxruntime.InferenceSession(path)
    assert [i.name for i in session.get_inputs()] == [*DENSE, *CATEGORICAL]
    cells = [line.split("\t")[1:] for line in lines[-500:]]
    columns = dict(zip([*DENSE, *CATEGORICAL], zip(*cells, strict=True), strict=True))
    given = {name: np.array(columns[name], object) for name in CATEGORICAL}
    given |= {name: np.array([float(c or "nan") for c in columns[name]]) for name in DENSE}
    # What 300 rows of training never lacked, the model refuses.
    there = [f.name for f in data.schema.raw_dense if f.missing_in_training is False]
    keep = ~np.isnan([given[name] for name in there]).any(axis=0) if there else np.ones(500, bool)
    frame = pl.DataFrame(
        {name: [cell or None for cell in cells] for name, cells in columns.items()}
    )
    expected = predictor.predict(frame.filter(pl.Series(keep)))
    (scores,) = session.run(None, {name: values[keep] for name, values in given.items()})
    assert len(scores) > 300
    assert expected.std() > 0.01
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_bad_input_is_one_line(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_collapsed_model(trained.run / "model.safetensors")
    old = tmp_path / "old.safetensors"
    save_collapsed(found.model, found.config, found.schema, old)
    out = tmp_path / "x.onnx"
    for model, words, message in (
        (
            trained.run,
            ("--raw", "--to", "torch"),
            "--raw is for --to onnx: a program of torch takes",
        ),
        (trained.run, ("--int64", "item"), "--int64 'item' is for --raw"),
        (trained.run, ("--raw", "--opset", 18), "no opset 18; there are 20 to 23 of raw graphs"),
        (trained.run, ("--raw", "--int64", "user"), "int64 'user': its category 'u1' is no 64-bit"),
        (trained.run, ("--raw", "--int64", "tags"), "int64 'tags': no one-valued field that is an"),
        (old, ("--raw",), "old.safetensors: holds no vocabularies, as models of earlier versions"),
    ):
        target = out.with_suffix(".pt2") if "torch" in words else out
        assert run("export", model, "-o", target, *words) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    with pytest.raises(ConversionError, match="raw graphs hold vocabularies, of which there are"):
        to_onnx(found.model, found.schema, out, raw=True)
    with pytest.raises(ConfigError, match="vocabularies is for raw graphs"):
        to_onnx(found.model, found.schema, out, vocabularies=found.vocabularies)
    schema = found.schema.model_copy(update={"format": None})
    taken = schema.dense[0].model_copy(update={"name": "probability"})
    schema = schema.model_copy(update={"dense": [taken, *schema.dense[1:]]})
    with pytest.raises(ConversionError, match="a column is called 'probability', as the output of"):
        to_onnx(found.model, schema, out, raw=True, vocabularies=found.vocabularies)
    assert list(tmp_path.iterdir()) == [old]
