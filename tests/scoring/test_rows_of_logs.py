"""Rows as logs have them: spelled in several ways, scaled by what training learnt, in files."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zstandard
from click_rows import Trained, scores_of_evaluation

from mlet import Predictor
from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import TableSchema, TableSource
from mlet.data.schema import DatasetSchema, DenseSchema
from mlet.errors import DataError
from mlet.scoring import score_files
from mlet.training import RunConfig, train

SCHEMA = {
    "label": "event",
    "positive": ["buy"],
    "dense": {
        "balance": {"scale": "signed_log", "missing_indicator": True},
        "height": "standard",
        "visits": {"scale": "quantile", "missing_indicator": True},
    },
    "categorical": ["member", "shop", "day"],
    "multi_valued": {"tags": "|"},
    "null_values": ["NA", -1],
    "quote": "none",
}


def logs(rows: int) -> pl.DataFrame:
    """Texts as they stand in a file; without the column ``day``."""
    draw = np.random.default_rng(5)

    def numbers(values: np.ndarray, missing: str) -> list[str]:
        return [
            missing if gone else str(value)
            for value, gone in zip(values.round(2), draw.random(rows) < 0.1, strict=True)
        ]

    return pl.DataFrame(
        {
            "event": draw.choice(["buy", "look", "leave"], rows),
            "balance": numbers(draw.normal(size=rows) * 50, "NA"),
            "height": draw.normal(170, 9, rows).round(1).astype(str),
            "visits": numbers(draw.zipf(1.6, rows).clip(max=500), "-1"),
            "member": draw.choice(["true", "False", "NA", "1"], rows),
            "shop": draw.choice(["7", "7.0", "07", 'the "Corner"', "8.00", "-1"], rows),
            "tags": draw.choice(["1|2.0", "2|NA", "", "True|3"], rows),
        }
    )


def write(rows: pl.DataFrame, path: Path) -> None:
    """Cells as they are, in no quotes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(rows.columns), *(",".join(row) for row in rows.iter_rows())]
    path.write_text("\n".join(lines) + "\n")


def train_on(folder: Path) -> None:
    model = {"name": "dlrm", "dim": 4, "inner_dim": 8, "bottom_mlp": [8], "top_mlp": [8]}
    training = {"epochs": 2, "batch_size": 64, "threads": 1}
    values = {"data": str(folder / "data"), "model": model, "training": training}
    train(RunConfig.parse(values, "test"), folder / "run")


@pytest.fixture(scope="module")
def of_logs(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two days, each in a folder of its own; the second is the test split."""
    folder = tmp_path_factory.mktemp("logs")
    raw = logs(3_000)
    for day, rows in ((1, raw[:2_400]), (2, raw[2_400:])):
        write(rows, folder / "logs" / f"day={day}" / "part-0.csv")
    source = TableSource([folder / "logs"], TableSchema.parse(SCHEMA, "test"))
    prepare(source, folder / "data", split=SplitRule(by="order", valid=0.2, test=0.2), min_count=2)
    train_on(folder)
    scores = scores_of_evaluation(folder / "run")
    assert len(np.unique(scores)) > 500, "rows are told apart"
    return Trained(folder / "run", folder / "data", raw[2_400:], scores)


def scored(trained: Trained, path: Path, tmp_path: Path) -> np.ndarray:
    out = tmp_path / "scores.parquet"
    score_files(trained.run, [path], out, overwrite=True)
    return pl.read_parquet(out)["score"].to_numpy()


def objects(rows: pl.DataFrame) -> bytes:
    """As JSON lines, bags as lists, whole numbers and truth as JSON has them."""

    def value(text: str) -> Any:
        plain = {"true": True, "False": False, "7": 7, "7.0": 7.0, "8.00": 8, "-1": -1, "NA": None}
        return plain.get(text, text)

    lines = []
    for row in rows.iter_rows(named=True):
        kept = {name: value(text) for name, text in row.items() if name not in ("event", "tags")}
        lines.append(json.dumps({**kept, "day": 2, "tags": row["tags"].split("|")}))
    return ("\n".join(lines) + "\n").encode()


def test_every_scale_is_in_the_schema(of_logs: Trained) -> None:
    found = Predictor.load(of_logs.run).schema.dense
    assert [(one.name, one.scale, one.missing_in_training) for one in found] == [
        ("balance", "signed_log", True),
        ("balance is missing", "missing", None),
        ("height", "standard", False),
        ("visits", "quantile", True),
        ("visits is missing", "missing", None),
    ]


def test_a_folder_with_its_partitions(of_logs: Trained, tmp_path: Path) -> None:
    write(of_logs.rows.drop("event"), tmp_path / "day=2" / "rows.csv")
    assert np.array_equal(scored(of_logs, tmp_path / "day=2", tmp_path), of_logs.scores)
    out = tmp_path / "scores.csv"
    score_files(of_logs.run, [tmp_path / "day=2" / "*.csv"], out, keep=["day", "shop"])
    found = pl.read_csv(out, infer_schema=False)
    assert found["day"].unique().to_list() == ["2"]
    assert found["shop"].to_list() == of_logs.rows["shop"].to_list(), "kept as it is"


def test_json_lines_and_typed_columns(of_logs: Trained, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(objects(of_logs.rows))
    assert np.array_equal(scored(of_logs, tmp_path / "rows.jsonl", tmp_path), of_logs.scores)
    typed = of_logs.rows.with_columns(
        pl.col("visits").cast(pl.Float64),
        pl.col("member").replace_strict({"true": True, "1": True, "False": False, "NA": None}),
        pl.col("tags").str.split("|"),
        day=pl.lit(2.0),
    )
    # Parquet is known by how it begins, whatever it is called.
    typed.write_parquet(tmp_path / "part-0")
    assert np.array_equal(scored(of_logs, tmp_path / "part-0", tmp_path), of_logs.scores)
    assert np.array_equal(Predictor.load(of_logs.run).predict(typed), of_logs.scores)
    row = typed.row(0, named=True)
    assert Predictor.load(of_logs.run).predict(row) == of_logs.scores[0]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_json_lines_from_standard_input(
    of_logs: Trained, tmp_path: Path, warm: Path, pack: Callable[[bytes], bytes]
) -> None:
    """Many times the same rows, so that there is more than is looked at first."""
    result = subprocess.run(
        [warm / "mlet", "predict", of_logs.run, "-", "-o", "scores.parquet"],
        input=pack(objects(of_logs.rows) * 9),
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found = pl.read_parquet(tmp_path / "scores.parquet")["score"].to_numpy()
    assert np.array_equal(found, np.tile(of_logs.scores, 9))


def test_what_was_never_missing(of_logs: Trained, tmp_path: Path) -> None:
    rows = of_logs.rows.with_columns(height=pl.lit("NA"))
    write(rows, tmp_path / "day=2" / "rows.csv")
    message = r"rows\.csv, line 2: dense feature 'height' is missing or NaN, which it never was in"
    with pytest.raises(DataError, match=message):
        scored(of_logs, tmp_path / "day=2", tmp_path)


def test_separators(of_logs: Trained, tmp_path: Path) -> None:
    """By the name of the file, unless the schema says which."""
    write(of_logs.rows, tmp_path / "day=2" / "rows.tsv")
    (tmp_path / "day=2" / "rows.tsv").write_text(
        (tmp_path / "day=2" / "rows.tsv").read_text().replace(",", "\t")
    )
    assert np.array_equal(scored(of_logs, tmp_path / "day=2", tmp_path), of_logs.scores)
    schema = TableSchema.parse({**SCHEMA, "separator": ","}, "test")
    with pytest.raises(DataError, match=r'is it separated otherwise\? Say separator: "\\t"'):
        list(TableSource([tmp_path / "day=2"], schema).frames())


class Words:
    """A reader's rows whose texts are categories just as they are written."""

    description, default_split = "words", "order"

    def __init__(self) -> None:
        schema = TableSchema(label="y", categorical=["flag", "page"])
        self.columns = TableSource([], schema).columns

    def frames(self) -> Any:
        draw = np.random.default_rng(0)
        flags = draw.choice(["true", "True", "1", "7.0", "7"], 2_000)
        clicks = pl.Series(draw.integers(0, 2, 2_000), dtype=pl.UInt8)
        yield pl.DataFrame({"label": clicks, "field:flag": flags, "field:page": ["8"] * 2_000})


def test_vocabularies_that_know_several_spellings(tmp_path: Path) -> None:
    """As of a reader that does not unite them, or of data prepared before there was one."""
    prepare(Words(), tmp_path / "data", split=SplitRule(by="order", valid=0.2, test=0.2))
    train_on(tmp_path)
    flags = pl.concat(list(Words().frames())).tail(400).select(flag="field:flag", page=pl.lit(8.0))
    expected = scores_of_evaluation(tmp_path / "run")
    assert len(np.unique(expected)) == 5
    predictor = Predictor.load(tmp_path / "run")
    assert predictor.as_written == {"flag"}
    assert np.array_equal(predictor.predict(flags), expected)
    flags.write_csv(tmp_path / "rows.csv")
    score_files(tmp_path / "run", [tmp_path / "rows.csv"], tmp_path / "scores.parquet")
    assert np.array_equal(pl.read_parquet(tmp_path / "scores.parquet")["score"], expected)


def test_what_earlier_versions_wrote_is_written_as_it_was(of_logs: Trained) -> None:
    schema = PreparedDataset(of_logs.data).schema
    values = schema.model_dump(mode="json")
    del values["format"]
    values["dense"] = [{"name": "a", "scale": "log"}]
    assert DatasetSchema.model_validate(values).model_dump(mode="json") == values
    assert DenseSchema(name="a", scale="log").model_dump() == {"name": "a", "scale": "log"}
