"""``mlet predict``: the scores of ``mlet evaluate``, to the bit, of raw rows however they come."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
import zstandard
from click_rows import SCHEMA, Trained, clicks, scores_of_evaluation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlet.data import SplitRule, prepare
from mlet.data.readers import MovieLensSource, TableSchema, TableSource
from mlet.data.synthetic import SyntheticConfig, SyntheticSource
from mlet.models import DLRMConfig
from mlet.scoring import score_files
from mlet.training import RunConfig, train
from mlet.training.collapse import collapse_run
from mlet.training.config import TrainingConfig

ROOT = Path(__file__).parents[2]


def csv(rows: pl.DataFrame, separator: str = ",") -> bytes:
    return rows.write_csv(separator=separator).encode()


WRITERS: dict[str, Callable[[pl.DataFrame], bytes]] = {
    "rows.csv": csv,
    "rows.tsv": lambda rows: csv(rows, "\t"),
    "rows.csv.gz": lambda rows: gzip.compress(csv(rows)),
    "rows.tsv.zst": lambda rows: zstandard.compress(csv(rows, "\t")),
}


def scores(path: Path) -> np.ndarray:
    read = pl.read_csv if path.suffix == ".csv" else pl.read_parquet
    return read(path)["score"].to_numpy()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", [*WRITERS, "rows.parquet", "lists.parquet"])
def test_every_format(trained: Trained, tmp_path: Path, name: str, labelled: bool) -> None:
    rows = trained.rows if labelled else trained.rows.drop("click")
    file, out = tmp_path / name, tmp_path / "scores.parquet"
    if name == "lists.parquet":
        rows = rows.with_columns(pl.col("tags").str.split("|"), pl.col("item").cast(pl.Float64))
    if name in WRITERS:
        file.write_bytes(WRITERS[name](rows))
    else:
        rows.write_parquet(file)
    assert score_files(trained.run, [file], out) == len(rows)
    assert np.array_equal(scores(out), trained.scores)


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_standard_input(trained: Trained, tmp_path: Path, warm: Path, name: str) -> None:
    rows = trained.rows.drop("click")
    if name in WRITERS:
        (tmp_path / name).write_bytes(WRITERS[name](rows))
    else:
        rows.write_parquet(tmp_path / name)
    command = [warm / "mlet", "predict", trained.run, "-", "-o", "scores.csv", "--keep", "request"]
    result = subprocess.run(
        command,
        input=(tmp_path / name).read_bytes(),
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found = pl.read_csv(tmp_path / "scores.csv")
    assert found.columns == ["request", "score"]
    assert found["request"].to_list() == rows["request"].to_list()
    assert np.array_equal(found["score"], trained.scores)


def test_a_moved_model_needs_nothing_else(trained: Trained, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(trained.data, data)
    config = RunConfig(
        data=data,
        model=DLRMConfig(dim=4, inner_dim=12, bottom_mlp=[8], top_mlp=[8]),
        training=TrainingConfig(batch_size=64, epochs=1, threads=1),
    )
    train(config, run)
    collapse_run(run, tmp_path / "model.safetensors")
    before = scores_of_evaluation(run)
    shutil.move(run, tmp_path / "elsewhere")
    shutil.rmtree(data)
    trained.rows.write_csv(tmp_path / "rows.csv")
    for model in ("elsewhere", "elsewhere/model.safetensors", "model.safetensors"):
        out = tmp_path / "scores.parquet"
        score_files(tmp_path / model, [tmp_path / "rows.csv"], out, overwrite=True)
        assert np.array_equal(scores(out), before)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_models(trained: Trained, tmp_path: Path, precision: str) -> None:
    model, out = tmp_path / "model.safetensors", tmp_path / "scores.parquet"
    collapse_run(trained.run, model, precision=precision)
    trained.rows.write_csv(tmp_path / "rows.csv")
    score_files(model, [tmp_path / "rows.csv"], out)
    assert np.array_equal(scores(out), scores_of_evaluation(model, trained.data))
    assert not np.array_equal(scores(out), trained.scores)


@pytest.mark.parametrize("table_dtype", ["bfloat16", "float16"])
def test_models_trained_in_16_bits(trained: Trained, tmp_path: Path, table_dtype: str) -> None:
    settings = {"data": str(trained.data), "training": {"epochs": 1, "batch_size": 256}}
    model = {"name": "deepfm", "dim": 4, "inner_dim": 8, "table_dtype": table_dtype}
    train(RunConfig.parse({**settings, "model": model}, "test"), tmp_path / "run")
    trained.rows.write_csv(tmp_path / "rows.csv")
    score_files(tmp_path / "run", [tmp_path / "rows.csv"], tmp_path / "scores.csv")
    assert np.array_equal(scores(tmp_path / "scores.csv"), scores_of_evaluation(tmp_path / "run"))


def test_columns_are_kept_in_their_types_and_order(trained: Trained, tmp_path: Path) -> None:
    rows = trained.rows.with_columns(pl.col("tags").str.split("|"))
    rows.write_parquet(tmp_path / "rows.parquet")
    out = tmp_path / "scores.parquet"
    score_files(trained.run, [tmp_path / "rows.parquet"], out, keep=["tags", "request", "click"])
    found = pl.read_parquet(out)
    assert found.drop("score").equals(rows.select("tags", "request", "click"))
    assert found.schema["score"] == pl.Float64


def test_folders_and_patterns_are_read_in_the_order_of_names(
    trained: Trained, tmp_path: Path
) -> None:
    folder, out = tmp_path / "day [1]", tmp_path / "scores.parquet"
    (folder / "b").mkdir(parents=True)
    parts = {"a.csv": (0, 100), "b/c.parquet": (100, 777), "d.tsv": (777, 1_000)}
    for name, (start, stop) in parts.items():
        part = trained.rows[start:stop]
        if name.endswith(".parquet"):
            part.write_parquet(folder / name)
        else:
            part.write_csv(folder / name, separator="\t" if name.endswith(".tsv") else ",")
    (folder / "_SUCCESS").touch()
    score_files(trained.run, [folder], out)
    assert np.array_equal(scores(out), trained.scores)
    shutil.move(folder, tmp_path / "day")
    patterns = [tmp_path / "day" / pattern for pattern in ("[a]*", "*/*.parquet", "d*")]
    score_files(trained.run, patterns, out, overwrite=True)
    assert np.array_equal(scores(out), trained.scores)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 999), max_size=4, unique=True))
def test_order_and_files_change_no_score(
    trained: Trained, tmp_path: Path, seed: int, cuts: list[int]
) -> None:
    order = np.random.default_rng(seed).permutation(len(trained.rows)) if seed else slice(None)
    rows = trained.rows[order]
    edges = [0, *sorted(cuts), len(rows)]
    files = []
    for place, (start, stop) in enumerate(pairwise(edges)):
        files.append(tmp_path / f"{place}.csv")
        rows[start:stop].write_csv(files[-1])
    score_files(trained.run, files, tmp_path / "scores.parquet", overwrite=True)
    assert np.array_equal(scores(tmp_path / "scores.parquet"), trained.scores[order])


def test_synthetic_rows(tmp_path: Path) -> None:
    source = SyntheticSource(SyntheticConfig(rows=3_000, cardinalities=[200, 30], dense=2))
    prepare(source, tmp_path / "data", split=SplitRule(by="order", test=0.2))
    run_of(tmp_path)
    frame = pl.concat(list(source.frames())).tail(600)
    names = {name: name.partition(":")[2] for name in frame.columns if ":" in name}
    frame.select(list(names)).rename(names).write_csv(tmp_path / "rows.csv")
    score_files(tmp_path / "run", [tmp_path / "rows.csv"], tmp_path / "scores.parquet")
    assert np.array_equal(
        scores(tmp_path / "scores.parquet"), scores_of_evaluation(tmp_path / "run")
    )


def run_of(folder: Path) -> None:
    """Trains ``run`` on ``data``."""
    model = {"name": "dlrm", "dim": 4, "inner_dim": 8, "bottom_mlp": [8], "top_mlp": [8]}
    values = {"data": str(folder / "data"), "model": model}
    values["training"] = {"epochs": 1, "batch_size": 512}
    train(RunConfig.parse(values, "test"), folder / "run")


def test_tennis(tennis: Path, tmp_path: Path) -> None:
    schema = TableSchema.load(ROOT / "studies" / "schemas" / "tennis.yaml")
    few = pl.scan_parquet(tennis).gather_every(40).collect()
    few.write_parquet(tmp_path / "few.parquet")
    rule = SplitRule(by="order", test=0.2)
    prepare(TableSource([tmp_path / "few.parquet"], schema), tmp_path / "data", split=rule)
    run_of(tmp_path)
    expected = scores_of_evaluation(tmp_path / "run")
    few.tail(len(expected)).drop(schema.label).write_csv(tmp_path / "rows.csv")
    score_files(tmp_path / "run", [tmp_path / "rows.csv"], tmp_path / "scores.parquet")
    assert np.array_equal(scores(tmp_path / "scores.parquet"), expected)


def test_movielens(movielens: Path, tmp_path: Path) -> None:
    """Its folder as it comes, without ratings, and a table with a column for each field."""
    folder = tmp_path / "films"
    folder.mkdir()
    shutil.copy(movielens / "movies.csv", folder)
    ratings = pl.read_csv(movielens / "ratings.csv", infer_schema=False).gather_every(20)
    ratings.write_csv(folder / "ratings.csv")
    source = MovieLensSource(folder)
    prepare(source, tmp_path / "data", split=SplitRule(by="order", test=0.2))
    run_of(tmp_path)
    expected = scores_of_evaluation(tmp_path / "run")
    typed = pl.concat(list(source.frames())).tail(len(expected))
    ratings.tail(len(expected)).drop("rating").write_csv(folder / "ratings.csv")
    out = tmp_path / "scores.parquet"
    score_files(tmp_path / "run", [folder], out, keep=["movieId"])
    assert np.array_equal(scores(out), expected)
    assert pl.read_parquet(out)["movieId"].equals(ratings["movieId"].tail(len(expected)))
    names = {name: name.partition(":")[2] for name in typed.columns if ":" in name}
    table = typed.select(list(names)).rename(names).with_columns(pl.col("genres").list.join("|"))
    table.write_csv(tmp_path / "rows.csv")
    (tmp_path / "rows.yaml").write_text(
        yaml.safe_dump(
            {
                "label": "none",
                "categorical": [name for name in table.columns if name != "genres"],
                "multi_valued": {"genres": "|"},
            }
        )
    )
    for option in (("--format", "table"), ("--schema", tmp_path / "rows.yaml")):
        command = [sys.executable, "-m", "mlet", "predict", tmp_path / "run", tmp_path / "rows.csv"]
        command += [*option, "-o", out, "--overwrite"]
        assert subprocess.run(command, timeout=120).returncode == 0
        assert np.array_equal(scores(out), expected)


MEASURED = """
import resource, sys
from pathlib import Path
import mlet.data.delimited as delimited
import mlet.data.readers.table as table
from mlet.scoring import score_files
table._PARQUET_ROWS = 20_000
delimited.read_delimited.__kwdefaults__["block_bytes"] = 1 << 20
run, file, out = map(Path, sys.argv[1:])
score_files(run, [file], out, keep=["request", "tags"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_rows(trained: Trained, tmp_path: Path, suffix: str) -> None:
    """In parts of 1 MB or 20 000 rows, so that a long file is one of many parts."""
    used = {}
    for rows in (40_000, 800_000):
        frame = clicks(40_000, seed=1)
        frame = pl.concat([frame] * (rows // len(frame)))
        file = tmp_path / f"{rows}{suffix}"
        frame.write_csv(file) if suffix == ".csv" else frame.write_parquet(file)
        out = tmp_path / f"{rows}.out.parquet"
        command = [sys.executable, "-c", MEASURED, trained.run, file, out]
        result = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert result.returncode == 0, result.stderr
        used[rows] = int(result.stdout)
        assert len(pl.read_parquet(out)) == rows
    # Held in memory, the long file's rows take more than 150 MB as text alone.
    assert used[800_000] < used[40_000] + 80, used


def test_the_schema_of_the_tests_is_that_of_training(trained: Trained) -> None:
    from mlet import Predictor

    schema = Predictor.load(trained.run).schema
    assert schema.format is not None
    assert TableSchema.parse(schema.format.table or {}, "kept") == TableSchema.parse(SCHEMA, "test")
    assert [(one.name, one.missing_in_training) for one in schema.dense] == [
        ("price", False),
        ("age", True),
    ]
