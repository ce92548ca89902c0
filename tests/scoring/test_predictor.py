"""`mlet.Predictor`: a row or a table in memory, scored as files are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from click_rows import Trained

import mlet
from mlet.data import PreparedDataset
from mlet.errors import DataError, RunError
from mlet.export import save_collapsed
from mlet.models import MODELS, ModelConfig, build_model
from mlet.nn.compression import COMPRESSIONS
from mlet.training import RunDirectory
from mlet.training.predict import served_scores


@pytest.fixture(scope="module")
def predictor(trained: Trained) -> mlet.Predictor:
    return mlet.Predictor.load(trained.run)


def as_pandas(rows: pl.DataFrame) -> pd.DataFrame:
    """As ``pandas.DataFrame`` makes it of Python's values: NaN where a number is missing."""
    return pd.DataFrame(rows.to_dict(as_series=False))


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("kind", [pl.DataFrame, as_pandas, pl.DataFrame.to_arrow])
def test_tables(trained: Trained, predictor: mlet.Predictor, kind: Any, lists: bool) -> None:
    rows = trained.rows
    if lists:
        split = pl.col("tags").fill_null("").str.split("|")
        rows = rows.with_columns(split.list.eval(pl.element().filter(pl.element() != "")))
    table = kind(rows)
    assert type(table).__module__.split(".")[0] in ("polars", "pandas", "pyarrow")
    assert np.array_equal(predictor.predict(table), trained.scores)


def test_more_kinds_of_pandas_columns(trained: Trained, predictor: mlet.Predictor) -> None:
    frame = as_pandas(trained.rows)
    frame = frame.astype({"age": "Int64", "item": "category", "user": "string"})
    assert np.array_equal(predictor.predict(frame), trained.scores)
    # Lists are arrays of NumPy where pandas has read them from Parquet, the first of them empty.
    frame["tags"] = [np.array([t for t in one.split("|") if t], object) for one in frame["tags"]]
    assert np.array_equal(predictor.predict(frame), trained.scores)
    frame["age"] = frame["age"].astype("float32")
    frame["user"] = frame["user"].astype(object).where(frame["user"].notna(), float("nan"))
    assert np.array_equal(predictor.predict(frame), trained.scores)


def test_rows(trained: Trained, predictor: mlet.Predictor) -> None:
    """One by one, each in a batch of its own: the score is the same to the bit."""
    for place, row in enumerate(trained.rows[:40].iter_rows(named=True)):
        tags = (row["tags"] or "").split("|")
        for given in (row, {**row, "tags": tags}, {**row, "tags": tuple(tags)}):
            score = predictor.predict(given)
            assert isinstance(score, float)
            assert score == trained.scores[place]


def test_what_training_never_saw_is_the_unknown_category(
    trained: Trained, predictor: mlet.Predictor
) -> None:
    row = trained.rows.row(0, named=True)
    categories = PreparedDataset(trained.data).vocabulary("user")["category"].to_list()
    rare = next(f"u{n}" for n in range(400) if f"u{n}" not in categories)
    scores = {predictor.predict({**row, "user": user}) for user in ("never", rare, 12, 1.5, True)}
    assert len(scores) == 1
    assert predictor.predict({**row, "user": None}) == predictor.predict({**row, "user": ""})
    assert predictor.predict({**row, "item": 3}) == predictor.predict({**row, "item": "3"})
    assert predictor.predict({**row, "item": 3.0}) == predictor.predict({**row, "item": "3"})
    assert predictor.predict({**row, "tags": None}) == predictor.predict({**row, "tags": []})
    assert predictor.predict({**row, "age": None}) == predictor.predict({**row, "age": 0})
    assert predictor.predict({**row, "age": float("nan")}) == predictor.predict({**row, "age": 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": ["a"]}, r"the row: column 'user' of type List\(String\) holds no numbers or t"),
        ({"user": {"a": 1}}, "the row: column 'user' of type Struct.*holds no numbers or texts"),
        ({"user": object()}, "the row.*'user'"),
        ({"tags": [["a"]]}, "the row: column 'tags' of type .* holds no lists of numbers or texts"),
        ({"price": "much"}, "the row, line 1: column 'price' holds 'much', expected a finite num"),
        ({"price": float("inf")}, "column 'price' holds 'inf', expected a finite number"),
        ({"price": None}, "the row, line 1: dense feature 'price' is missing or NaN, which it nev"),
        ({"price": float("nan")}, "dense feature 'price' is missing or NaN.*fill it in"),
        ({"price": 1e300}, "dense feature 'price' has values too large for float32"),
    ],
)
def test_values_of_the_wrong_kind(
    trained: Trained, predictor: mlet.Predictor, changes: dict[str, object], message: str
) -> None:
    row = {**trained.rows.row(0, named=True), **changes}
    with pytest.raises(DataError, match=message) as caught:
        predictor.predict(row)
    assert "\n" not in str(caught.value)


def test_what_is_no_row_and_no_table(trained: Trained, predictor: mlet.Predictor) -> None:
    row = trained.rows.row(0, named=True)
    del row["item"]
    with pytest.raises(DataError, match="the row has no 'item', which the model was trained on; g"):
        predictor.predict(row)
    with pytest.raises(DataError, match="the table: no column 'age'; the table has request"):
        predictor.predict(trained.rows.drop("age"))
    with pytest.raises(DataError, match="no column 'age'"):
        predictor.predict(as_pandas(trained.rows).drop(columns="age"))
    with pytest.raises(DataError, match="a list is no row and no table; give a mapping"):
        predictor.predict([1, 2])
    with pytest.raises(DataError, match="line 3: column 'price' holds 'x'"):
        predictor.predict(trained.rows.with_columns(price=pl.Series(["1", "2", *["x"] * 998])))
    mixed = as_pandas(trained.rows)
    for wrong in ({"a": 1}, ["a"]):
        mixed["user"] = [wrong, *["b"] * 999]
        with pytest.raises(DataError, match="the table cannot be read"):
            predictor.predict(mixed)
    mixed["user"] = [True, 7, 7.0, 7.5, *["u1"] * 996]
    texts = trained.rows.with_columns(user=pl.Series(["1", "7", "7", "7.5", *["u1"] * 996]))
    assert np.array_equal(predictor.predict(mixed), predictor.predict(texts))
    twice = as_pandas(trained.rows).iloc[:, [*range(trained.rows.width), 4]]
    with pytest.raises(DataError, match=r"the table cannot be read \(.*more than one"):
        predictor.predict(twice)
    assert len(predictor.predict(trained.rows.clear())) == 0
    assert len(predictor.predict(pa.table(trained.rows.to_arrow().slice(0, 3)))) == 3


def test_pandas_and_pyarrow_are_not_needed(trained: Trained) -> None:
    code = (
        "import sys; sys.modules['pandas'] = sys.modules['pyarrow'] = None\n"
        "import mlet, polars as pl\n"
        f"predictor = mlet.Predictor.load({str(trained.run)!r})\n"
        "row = {'price': 1.0, 'age': 3, 'user': 'u1', 'item': 2, 'tags': ['a']}\n"
        "print(predictor.predict(row) == predictor.predict(pl.DataFrame([row]))[0])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "True\n", result.stderr


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model(trained: Trained, tmp_path: Path, name: str) -> None:
    """A row's score does not depend on the rows beside it, to the bit."""
    data = PreparedDataset(trained.data)
    torch.manual_seed(0)
    config = ModelConfig.parse({"name": name, "dim": 1 if name == "lr" else 4}, "test")
    model = build_model(config, data.schema)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    file = tmp_path / "model.safetensors"
    save_collapsed(model, config, data.schema, file, vocabularies=data.vocabularies)
    predictor = mlet.Predictor.load(file)
    scores = predictor.predict(trained.rows)
    assert np.array_equal(scores, served_scores(model.collapse(), data.split("test")))
    assert np.array_equal(predictor.predict(trained.rows[100:700]), scores[100:700])
    order = np.random.default_rng(0).permutation(len(scores))
    assert np.array_equal(predictor.predict(trained.rows[order]), scores[order])
    assert predictor.predict(trained.rows.row(500, named=True)) == scores[500]


@pytest.mark.parametrize("name", list(COMPRESSIONS))
def test_every_compression(trained: Trained, tmp_path: Path, name: str) -> None:
    """Also where the vectors of a batch's distinct categories are computed together."""
    data = PreparedDataset(trained.data)
    values = {"name": "deepfm", "dim": 4, "mlp": [9, 7], "compression": {"name": name}}
    config = ModelConfig.parse(values, "test")
    torch.manual_seed(0)
    model, file = build_model(config, data.schema), tmp_path / "model.safetensors"
    save_collapsed(model, config, data.schema, file, vocabularies=data.vocabularies)
    predictor = mlet.Predictor.load(file)
    scores = predictor.predict(trained.rows)
    assert np.array_equal(scores, served_scores(model.collapse(), data.split("test")))
    order = np.random.default_rng(0).permutation(len(scores))
    assert np.array_equal(predictor.predict(trained.rows[order]), scores[order])
    for place in (0, 7, 500):
        assert predictor.predict(trained.rows.row(place, named=True)) == scores[place]


def test_files_that_are_no_model(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(RunError, match=r"model\.safetensors: no such file"):
        mlet.Predictor.load(file)
    content = RunDirectory(trained.run).model_file.read_bytes()
    for damaged in (content[:-100], content[:100], b"", content[:-1] + b"\0"):
        file.write_bytes(damaged)
        with pytest.raises(RunError, match=r"model\.safetensors: damaged.*collapse the run again"):
            mlet.Predictor.load(file)
    with pytest.raises(RunError, match=r"not a run \(no config\.yaml\)"):
        mlet.Predictor.load(tmp_path)


def test_a_model_of_an_earlier_version(trained: Trained, tmp_path: Path) -> None:
    data = PreparedDataset(trained.data)
    config = ModelConfig.parse({"name": "fm", "dim": 4}, "test")
    save_collapsed(build_model(config, data.schema), config, data.schema, tmp_path / "old")
    with pytest.raises(RunError, match=r"old: holds no vocabularies.*mlet collapse RUN --out FILE"):
        mlet.Predictor.load(tmp_path / "old")
