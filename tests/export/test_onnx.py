"""ONNX graphs of all models at all precisions, in ONNX Runtime; and ``mlet export``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from zoo import CONFIGS

from mlet.cli import main
from mlet.data import BatchLoader, PreparedDataset
from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError, ConversionError, WriteError
from mlet.export import (
    CollapsedModel,
    load_collapsed,
    onnx,
    save_collapsed,
    serving_module,
    to_onnx,
)
from mlet.export.raw import RawTable, with_raw_inputs
from mlet.models import MODELS, CTRModel, DLRMConfig, build_model
from mlet.nn.compression import PRECISIONS, Hashing, LowRank, Precision, QuotientRemainder
from mlet.scoring import Predictor
from mlet.training.predict import predict

pytest.importorskip(
    "onnxruntime", reason="the extra 'onnx' is not installed: make test installs it"
)
import onnxruntime
from onnx import ModelProto, checker, load

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def schema(small_data: Path) -> DatasetSchema:
    """The synthetic fields, the last of them multi-valued."""
    schema = PreparedDataset(small_data).schema
    *others, last = schema.fields
    bag = last.model_copy(update={"multi_valued": True})
    return schema.model_copy(update={"fields": [*others, bag]})


@pytest.fixture(scope="module")
def vocabularies(small_data: Path) -> dict[str, pl.DataFrame]:
    data = PreparedDataset(small_data)
    return {field.name: data.vocabulary(field.name) for field in data.schema.fields}


def scores(path: Path, given: dict[str, torch.Tensor]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    return torch.from_numpy(found)


def checked(path: Path) -> ModelProto:
    checker.check_model(path, full_check=True)
    return load(path)


def shapes(values: Any) -> dict[str, list[str | int]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


#: Models at whose codes into codebooks all are looked: with a linear part, which has some too, and
#: without.
CODED = ("deepfm", "dlrm")
#: Tables of several widths: at one precision each.
BY_FIELD: dict[str, Precision] = {
    "dlrm, by field": "int4",
    "deepfm, by field": "pq2",
    "masknet, by field": "float16",
}
#: Every option of a model once; the models themselves, which see no precision, at each of them.
CASES = [
    (name, precision)
    for place, (name, config) in enumerate(CONFIGS.items())
    for precision in PRECISIONS
    if precision == BY_FIELD.get(name, "float32")
    or config.name not in {other.name for other in list(CONFIGS.values())[:place]}
    if not precision.startswith("pq") or config.name in CODED
]


def test_no_model_is_left_out() -> None:
    cases = {(CONFIGS[name].name, precision) for name, precision in CASES}
    assert cases == {
        (name, precision)
        for name in MODELS
        for precision in PRECISIONS
        if not precision.startswith("pq") or name in CODED
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), CASES)
def test_all_models_at_all_precisions(
    name: str,
    precision: Precision,
    schema: DatasetSchema,
    vocabularies: dict[str, pl.DataFrame],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = build_model(CONFIGS[name], schema)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # linear parts start at zero
    path = tmp_path / "model.onnx"
    is_raw = precision == "float32" or name == "dlrm"
    opset = 20 if is_raw else 18
    done = to_onnx(model, schema, path, tables=precision, opset=opset)
    assert done.largest_difference <= 1e-5
    graph = checked(path)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", opset)]
    assert not graph.functions, "nothing but ONNX's own operators"
    assert shapes(graph.graph.input) == {
        "dense": ["batch", 2],
        "ids": ["batch", 2],
        "C3.values": ["C3.values"],
        "C3.lengths": ["batch"],
    }
    assert shapes(graph.graph.output) == {"probability": ["batch"]}
    served = model.collapse(precision).eval()
    module = serving_module(served, schema)
    for rows in (1, 2, 50):
        given = module.random_inputs(rows, seed=rows)
        found = scores(path, dict(zip(module.inputs, given, strict=True)))
        assert found.shape == (rows,)
        torch.testing.assert_close(found, module(*given), rtol=0, atol=1e-5)
        assert rows == 1 or found.std() > 0
    if is_raw:
        raw_scores_are_the_predictors(graph, served, schema, vocabularies, tmp_path / "raw.onnx")


def raw_scores_are_the_predictors(
    graph: ModelProto,
    served: CTRModel,
    schema: DatasetSchema,
    vocabularies: dict[str, pl.DataFrame],
    path: Path,
) -> None:
    """What `to_onnx` does with ``raw`` once it has traced the model, which takes the seconds."""
    table = RawTable(schema, vocabularies)
    path.write_bytes(
        with_raw_inputs(graph, serving_module(served, schema), table).SerializeToString()
    )
    opsets = [(o.domain, o.version) for o in checked(path).opset_import]
    assert opsets == [("", 20), ("ai.onnx.ml", 3)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {i.name: (i.type, i.shape) for i in session.get_inputs()} == {
        "I1": ("tensor(double)", ["batch"]),
        "I2": ("tensor(double)", ["batch"]),
        "C1": ("tensor(string)", ["batch"]),
        "C2": ("tensor(string)", ["batch"]),
        "C3": ("tensor(string)", ["batch", "C3.width"]),
    }
    found = CollapsedModel(served, CONFIGS["fm"], schema, vocabularies)
    predictor = Predictor(found, path)
    for rows in (1, 60):
        draw = np.random.default_rng(rows)
        some = {n: [*v["category"].to_list()[1:40], "new", ""] for n, v in vocabularies.items()}
        given = {n: draw.choice(np.array(some[n], object), rows) for n in ("C1", "C2")}
        given["C3"] = draw.choice(np.array([*some["C3"], ""], object), (rows, 3))
        for name in ("I1", "I2"):
            given[name] = draw.choice([0.0, 3.0, 77.0, np.nan], rows)
        bags = pl.Series("C3", given["C3"].tolist(), dtype=pl.List(pl.String))
        frame = pl.DataFrame([pl.Series(n, v.tolist()) for n, v in given.items() if n != "C3"])
        (scored,) = session.run(None, given)
        expected = predictor.predict(frame.with_columns(bags))
        np.testing.assert_allclose(scored, expected, rtol=0, atol=1e-5)


def test_quantized_tables_stay_quantized(schema: DatasetSchema, tmp_path: Path) -> None:
    categories, dim = 50_000, 16
    fields = [f.model_copy(update={"num_categories": categories}) for f in schema.fields]
    schema = schema.model_copy(update={"fields": fields})
    model = build_model(DLRMConfig(dim=dim, bottom_mlp=[8], top_mlp=[8]), schema)
    row = {"float32": 4 * dim, "float16": 2 * dim, "int8": dim + 8, "int4": dim // 2 + 4}
    # Codes for one, two and four columns, of as many rows as docs/serving.md says.
    first, second = -(-categories // 32), -(-categories // 4)
    row["pq2"] = (first + second) * dim / 2 / categories + (1 - second / categories) * dim / 4
    books = {"pq2": 3}  # a tier's: 256 float16 numbers for each column
    for precision in row:
        path = tmp_path / f"{precision}.onnx"
        done = to_onnx(model, schema, path, tables=precision)
        tables = len(fields) * (
            categories * row[precision] + books.get(precision, 0) * 256 * dim * 2
        )
        assert tables - 1 < done.bytes == path.stat().st_size < tables + 20_000
        # Rows are decoded after they were looked up: no other tensor is as long as a table.
        graph = load(path).graph
        if precision not in books:
            assert max(len(t.dims) and t.dims[0] for t in graph.initializer) == 3 * categories
        uses = {name for node in graph.node for name in node.input if node.op_type != "Gather"}
        long = {t.name for t in graph.initializer if t.dims and t.dims[0] >= 3 * categories}
        assert long
        assert not uses & long


def test_ids_outside_their_table_are_refused(schema: DatasetSchema, tmp_path: Path) -> None:
    """Also those that are a row of another field's table."""
    path = tmp_path / "model.onnx"
    to_onnx(build_model(CONFIGS["fm"], schema), schema, path, tables="int8")
    sizes = [field.num_categories for field in schema.fields]
    good = {
        "dense": torch.zeros(2, 2),
        "ids": torch.tensor([[0, 0], [sizes[0] - 1, sizes[1] - 1]]),
        "C3.values": torch.tensor([0, sizes[2] - 1]),
        "C3.lengths": torch.tensor([2, 0]),
    }
    assert scores(path, good).isfinite().all()
    for wrong in (
        {"ids": torch.tensor([[0, 0], [sizes[0], 0]])},
        {"ids": torch.tensor([[0, -1], [0, 0]])},
        {"C3.values": torch.tensor([0, sizes[2]])},
        {"C3.lengths": torch.tensor([1, 0])},
        {"C3.lengths": torch.tensor([2, 1])},
        {"C3.lengths": torch.tensor([3, -1])},
        {"C3.lengths": torch.tensor([-1, 3])},
    ):
        with pytest.raises(Exception, match=r"out of data bounds|indices|[Ii]nvalid"):
            scores(path, {**good, **wrong})


@pytest.mark.slow
@pytest.mark.parametrize(
    "compression", [Hashing(), LowRank(rank=2), QuotientRemainder()], ids=lambda c: c.name
)
def test_compressed_tables_are_exported(
    compression: Any, schema: DatasetSchema, tmp_path: Path
) -> None:
    changes = {"compression": compression, "inner_dim": None}
    model = build_model(CONFIGS["fm"].model_copy(update=changes), schema)
    assert to_onnx(model, schema, tmp_path / "model.onnx").largest_difference <= 1e-5
    checked(tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("opset", onnx.OPSETS)
def test_opsets(opset: int, schema: DatasetSchema, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    to_onnx(build_model(CONFIGS["masknet, serial"], schema), schema, path, opset=opset)
    assert [o.version for o in checked(path).opset_import] == [opset]


def test_what_cannot_be_exported_is_refused(
    schema: DatasetSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = build_model(CONFIGS["fm"], schema), tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match="no opset 17; there are 18 to 23"):
        to_onnx(model, schema, path, opset=17)
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "_LARGEST", 1_000)
        with pytest.raises(ConversionError, match=r"one ONNX file holds 2 GiB; choose a lower"):
            to_onnx(model, schema, path)
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "_PACKAGES", ("onnx", "no_such_runtime"))
        with pytest.raises(ConversionError, match=r'no_such_runtime: pip install "mlet\[onnx\]"'):
            to_onnx(model, schema, path)
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"model\.onnx: cannot be written"):
        to_onnx(model, schema, tmp_path / "file" / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_run_is_exported(mlet: Mlet, small_data: Path, tmp_path: Path) -> None:
    words = ("--model", "deepfm", "--dim", 4, "--inner-dim", 8, "--epochs", 1)
    mlet("train", small_data, "--out", "run", *words, "--set", "model.mlp=[8]")
    said = mlet("export", "run", "--to", "onnx", "-o", "model.onnx")
    assert said.stdout.startswith("dense, ids -> probability; largest difference from the model's")
    assert said.stderr == "", "what the exporter says of itself is not for users"
    mlet("export", "run/model.safetensors", "-o", "int8.onnx", "--tables", "int8")
    data = PreparedDataset(small_data)
    model, _, schema = load_collapsed(tmp_path / "run" / "model.safetensors")
    batch = next(BatchLoader(data.split("test"), 500).epoch())
    given = {"dense": batch.dense, "ids": batch.ids.long()}
    for name, served in (("model", model), ("int8", model.collapse("int8"))):
        expected = predict(served, data.split("test"), max_rows=500)
        assert scores(tmp_path / f"{name}.onnx", given).tolist() == pytest.approx(
            expected.tolist(), abs=1e-5
        )
    (entry,) = load(tmp_path / "int8.onnx").metadata_props
    told = json.loads(entry.value)
    assert (told["ids"], told["dense"]) == (["C1", "C2", "C3"], ["I1", "I2"])
    assert told["tables"] == "int8"
    assert told["digests"]["C1"] == schema.fields[0].digest
    assert "already exists" in mlet("export", "run", "-o", "model.onnx", code=2).stderr
    mlet("export", "run", "-o", "model.onnx", "--tables", "int4", "--opset", 21, "--overwrite")
    mlet("export", "run", "--to", "torch", "-o", "model.pt2")
    found = torch.export.load(tmp_path / "model.pt2").module()(batch.dense, batch.ids.long())
    assert found.tolist() == pytest.approx(
        predict(model, data.split("test"), max_rows=500).tolist(), abs=1e-5
    )


def test_bad_input_is_one_line(
    schema: DatasetSchema,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Path("m.safetensors")
    save_collapsed(build_model(CONFIGS["fm"], schema), CONFIGS["fm"], schema, model, "int8")
    Path("cut.safetensors").write_bytes(model.read_bytes()[:-40])
    Path("begun").mkdir()
    Path("begun/config.yaml").write_text("data: nowhere\n")
    for arguments, message in (
        ((model, "--to", "tflite"), "--to 'tflite': no such format; there are onnx, torch"),
        ((model, "--opset", 7), "no opset 7; there are 18 to 23"),
        ((model, "--tables", "int2"), "--tables 'int2': no such precision; there are float32, "),
        ((model, "--tables", "int4"), "the tables are int8 already"),
        ((model, "--to", "torch"), "x.onnx: --to torch writes .pt2 files; name it x.pt2"),
        ((model, "--to", "torch", "-o", "x.pt2", "--opset", 20), "--opset is for --to onnx"),
        (("cut.safetensors",), "cut.safetensors: damaged ("),
        (("nowhere.safetensors",), "nowhere.safetensors: no such file"),
        (("begun",), "begun/model.safetensors: not there yet; finish the run with mlet train"),
        ((".",), "not a run (no config.yaml)"),
    ):
        monkeypatch.setattr(sys, "argv", ["mlet", "export", "-o", "x.onnx", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    assert not Path("x.onnx").exists()
