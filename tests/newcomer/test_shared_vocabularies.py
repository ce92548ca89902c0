"""Fields with the same categories: one vocabulary, one embedding table, from logs to scores."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from logs_made import source, write_schema
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from mlet.cli.app import app
from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.co_occurrence import co_occurrence_vectors, kept_co_occurrence_vectors
from mlet.data.identity import check_data
from mlet.errors import ConfigError, RunError
from mlet.export import load_collapsed, to_onnx
from mlet.models import build_model
from mlet.training import RunConfig, RunDirectory, train

ROWS = 1_000
RNG = np.random.default_rng(0)
ITEM = RNG.zipf(1.4, ROWS).clip(max=60)
LAST = RNG.zipf(1.4, ROWS).clip(max=90)  # some items are never shown
HISTORY = [RNG.zipf(1.3, RNG.integers(4)).clip(max=120).tolist() for _ in range(ROWS)]
FRAME = pl.DataFrame(
    {
        "click": (RNG.random(ROWS) < 0.2 + 0.5 * (ITEM % 2)).astype(int),
        "user": [f"u{user}" for user in RNG.integers(25, size=ROWS)],
        "item": [f"i{item}" for item in ITEM],
        "last": [f"i{item}" if item % 7 else None for item in LAST],
        "history": ["|".join(f"i{item}" for item in items) for items in HISTORY],
        "price": RNG.random(ROWS),
    }
)
SCHEMA: dict[str, Any] = {
    "label": "click",
    "dense": ["price"],
    "categorical": ["last", "user", "item"],
    "multi_valued": {"history": "|"},
    "shares": {"last": "item", "history": "item"},
}


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, their schema, the data set and a run of the recipe."""
    folder = tmp_path_factory.mktemp("logs")
    FRAME.write_csv(folder / "rows.csv")
    write_schema(folder / "schema.yaml", SCHEMA)
    shown = run(
        "prepare", "table", folder / "rows.csv", "--schema", folder / "schema.yaml",
        "--out", folder / "d", "--split", "order", "--min-count", "item=2",
    ).output  # fmt: skip
    assert f"{PreparedDataset(folder / 'd').schema.num_categories:,} categories" in shown
    run(
        "train", folder / "d", "--out", folder / "run", "--dim", 4, "--inner-dim", 16,
        "--epochs", 1, "--set", "training.threads=1", "--set", "training.keep_state=true",
    )  # fmt: skip
    return folder


def counted() -> Counter[str]:
    """Training occurrences in all three fields."""
    train_rows = FRAME[:800].fill_null("")
    bags = train_rows.filter(pl.col("history") != "")["history"].str.split("|").explode()
    return Counter([*train_rows["item"], *train_rows["last"], *bags])


def test_categories_are_counted_together(logs: Path) -> None:
    data, expected = PreparedDataset(logs / "d"), counted()
    kept = {category: count for category, count in expected.items() if count >= 2}
    table = data.vocabulary("last")
    assert dict(table[1:].iter_rows()) == kept
    assert table["count"][0] == sum(expected.values()) - sum(kept.values()) > 0
    for name in ("item", "history"):
        assert data.vocabulary(name).equals(table)
        assert data.training_counts[name] is data.training_counts["last"]
    fields = {field.name: field for field in data.schema.fields}
    assert [field.name for field in data.schema.fields] == ["last", "user", "item", "history"]
    assert {field.digest for field in fields.values() if field.owner == "item"} == {
        fields["item"].digest
    }
    assert data.schema.num_categories == len(table) + len(data.vocabulary("user"))
    assert sorted(path.stem for path in (logs / "d" / "vocabularies").iterdir()) == ["item", "user"]
    categories = table["category"].to_list()
    columns = data.split("test")
    decoded = [[categories[id_] for id_ in columns.ids[place]] for place in (0, 2)]
    for found, column in zip(decoded, ("last", "item"), strict=True):
        test = FRAME[900:][column].fill_null("").to_list()
        assert found == [one if one in kept else None for one in test]
    values, offsets = columns.bags["history"]
    for row in range(100):
        bag = [categories[id_] for id_ in values[offsets[row] : offsets[row + 1]]]
        assert bag == [f"i{i}" if f"i{i}" in kept else None for i in HISTORY[900 + row]]


def test_a_model_has_one_table_for_them(logs: Path) -> None:
    data, summary = PreparedDataset(logs / "d"), RunDirectory(logs / "run").summary()
    n, users = (data.schema.fields[place].num_categories for place in (2, 1))
    state = RunDirectory(logs / "run").load_best()["model"]
    tables = [key for key in state if key.startswith("embedding.")]
    assert {key.split(".")[1] for key in tables} == {"item", "user"}
    assert state["embedding.item.inner"].shape == (n, 16)
    dense = sum(t.nbytes for key, t in state.items() if key not in tables)
    own = {"item": n, "user": users}
    assert summary.training_bytes - dense == sum(4 * (16 * m + 16 * 4 + 4) for m in own.values())
    assert summary.model_bytes - dense == 4 * 4 * (n + users)
    names = set(load_file(logs / "run" / "model.safetensors"))
    assert {name for name in names if name.startswith(("embedding.", "vocabulary."))} == {
        "embedding.item", "embedding.user", "vocabulary.item", "vocabulary.user",
    }  # fmt: skip


def test_raw_rows_are_scored_as_encoded_ones(logs: Path) -> None:
    out = logs / "scores.parquet"
    run("predict", logs / "run", logs / "rows.csv", "--out", out)
    evaluated = json.loads(run("evaluate", logs / "run", "--json", "--bootstrap", 2).stdout)
    from sklearn.metrics import log_loss

    scores = pl.read_parquet(out)["score"][900:]
    found = log_loss(FRAME["click"][900:], scores)
    assert evaluated["slices"][0]["logloss"]["value"] == pytest.approx(found, rel=1e-12)
    run("collapse", logs / "run", "--out", logs / "small.safetensors", "--precision", "int8")
    model, _, schema = load_collapsed(logs / "small.safetensors")
    exported = to_onnx(model, schema, logs / "small.onnx")
    assert exported.largest_difference < 1e-5


def test_what_is_said_of_them(logs: Path) -> None:
    shown = run("describe", logs / "d", "--dim", 4).output
    assert shown.count("in the table of item") == 2
    numbers = json.loads(run("describe", logs / "d", "--dim", 4, "--json", "-").stdout)
    assert set(numbers["inner_dims"]) == {"item", "user"}
    n = sum(f["categories"] for f in numbers["fields"] if f["name"] in ("item", "user"))
    assert numbers["rows_per_category"] == pytest.approx(800 / n)
    page = logs / "page.html"
    assert "item" in run("inspect", logs / "run", "--out", page).output
    chosen = run("suggest-k", logs / "run").output
    assert "item" in chosen
    assert "history" not in chosen


def test_linear_parts_keep_weights_for_each_field(logs: Path) -> None:
    config = RunConfig.parse(
        {
            "data": str(logs / "d"),
            "model": {"name": "deepfm", "dim": 2, "inner_dim": 8, "mlp": [4]},
            "training": {"epochs": 1, "threads": 1},
        },
        "test",
    )
    train(config, logs / "deepfm")
    model, _, schema = load_collapsed(logs / "deepfm" / "model.safetensors")
    linear = [key for key in model.state_dict() if key.startswith("first_order.tables.")]
    assert {key.split(".")[2] for key in linear} == {f.name for f in schema.fields}
    assert {key.split(".")[1] for key in model.embedding.state_dict(prefix="e.")} == {
        "item", "user",
    }  # fmt: skip
    alone = build_model(RunConfig.parse({"data": "d", "model": {"name": "lr"}}, "t").model, schema)
    assert len(alone.embedding.table_names) == 4


def test_rows_start_from_what_categories_occur_with_in_any_field(logs: Path) -> None:
    data = PreparedDataset(logs / "d")
    found = co_occurrence_vectors(data, 4)
    assert set(found) == {field.name for field in data.schema.fields}
    assert found["last"] is found["item"]
    assert len(found["item"]) == data.schema.fields[2].num_categories
    first, again = (kept_co_occurrence_vectors(data, 4) for _ in range(2))
    for name, vectors in found.items():
        assert np.allclose(first[name], vectors, atol=1e-6)
        assert np.allclose(again[name], vectors, atol=1e-6)
    shown = {f"i{item}" for item in ITEM[:800]}
    categories = data.vocabulary("item")["category"].to_list()
    never = [place for place, one in enumerate(categories) if one and one not in shown]
    assert never
    assert (np.linalg.norm(found["item"][never], axis=1) > 0.9).all(), "met in other fields"


def test_weights_belong_to_what_is_shared(logs: Path, tmp_path: Path) -> None:
    alone = {key: value for key, value in SCHEMA.items() if key != "shares"}
    prepare(source([logs / "rows.csv"], alone), tmp_path / "d", split=SplitRule(by="order"))
    data = PreparedDataset(tmp_path / "d")
    assert "shares" not in (tmp_path / "d" / "schema.json").read_text(), "as before"
    shared = PreparedDataset(logs / "d").schema
    fields = [f.model_copy(update={"shares": None}) for f in shared.fields]
    with pytest.raises(RunError, match="field 'last' shares a vocabulary in one of them"):
        check_data(shared.model_copy(update={"fields": fields}), PreparedDataset(logs / "d"), logs)
    with pytest.raises(RunError):
        check_data(shared, data, logs)


def test_a_shared_vocabulary_and_its_table_go_on(logs: Path, tmp_path: Path) -> None:
    more = FRAME[:400].with_columns(pl.lit("brand new").alias("last"))
    more.write_csv(tmp_path / "more.csv")
    # Whose rows are ranked against one another changes nothing of what categories mean.
    write_schema(tmp_path / "schema.yaml", {**SCHEMA, "group": "user"})
    options = ("--schema", tmp_path / "schema.yaml", "--out", tmp_path / "d", "--split", "order")
    shown = run("prepare", "table", tmp_path / "more.csv", *options, "--extend", logs / "d").output
    before, now = PreparedDataset(logs / "d"), PreparedDataset(tmp_path / "d")
    table, n = now.vocabulary("last"), len(before.vocabulary("item"))
    assert table["category"][:n].equals(before.vocabulary("item")["category"])
    new = len(table) - n
    assert "brand new" in table["category"][n:]
    assert f"{new:,} new categories (item {new:,})" in " ".join(shown.split())
    run("train", tmp_path / "d", "--from", logs / "run", "--out", tmp_path / "run", "--epochs", 1)
    old, grown = (RunDirectory(one / "run").load_best()["model"] for one in (logs, tmp_path))
    assert len(grown["embedding.item.inner"]) == len(old["embedding.item.inner"]) + new
    model = load_collapsed(tmp_path / "run" / "model.safetensors")[0]
    assert {f.num_embeddings for f in model.embedding.fields if f.name != "user"} == {len(table)}
    other = write_schema(tmp_path / "other.yaml", {**SCHEMA, "shares": {"last": "item"}})
    result = CliRunner().invoke(
        app,
        [
            *("prepare", "table", str(tmp_path / "more.csv"), "--schema", str(other)),
            *("--out", str(tmp_path / "e"), "--extend", str(logs / "d")),
        ],
    )
    assert "cannot extend" in str(result.exception)
    assert "shares" in str(result.exception)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": {"last": "itme"}}, "shares: 'itme' is no field; the fields are last, user"),
        ({"shares": {"price": "item"}}, "shares: 'price' is no field"),
        ({"shares": {"last": "last"}}, "'last' shares the vocabulary of itself; name a field"),
        (
            {"shares": {"last": "item", "item": "user"}},
            "'last' shares the vocabulary of 'item', which shares 'user'",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        source([Path("rows.csv")], {**SCHEMA, **change})
    assert message in str(error.value)


def test_settings_are_of_the_field_that_is_shared(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'last': it shares the vocabulary of 'item'; give that"):
        prepare(source([logs / "rows.csv"], SCHEMA), tmp_path / "d", field_min_counts={"last": 3})
    model = {"dim": 2, "inner_dims": {"last": 8}}
    config = RunConfig.parse({"data": str(logs / "d"), "model": model}, "test")
    with pytest.raises(ConfigError, match="field 'last' is looked up in the table of 'item'"):
        train(config, tmp_path / "run")


def test_what_is_shared_goes_on_and_grows_once(logs: Path, tmp_path: Path) -> None:
    """New rows with new items in every field: one vocabulary goes on, one table grows."""
    later = FRAME.with_columns(
        last=pl.lit("i1"), history=pl.lit("i2|new"), item=pl.col("item").replace("i1", "newer")
    )
    later.write_csv(tmp_path / "later.csv")
    words = ["prepare", "table", tmp_path / "later.csv", "--extend", logs / "d", "--schema"]
    run(*words, logs / "schema.yaml", "--out", tmp_path / "new")
    then, now = PreparedDataset(logs / "d"), PreparedDataset(tmp_path / "new")
    known, found = (data.vocabulary("item") for data in (then, now))
    assert found["category"].head(len(known)).equals(known["category"])
    assert set(found["category"][len(known) :]) == {"new", "newer"}
    assert [field.num_categories for field in now.schema.fields if field.name != "user"] == (
        [len(found)] * 3
    )
    run(
        "train",
        now.root,
        "--from",
        logs / "run",
        "--out",
        tmp_path / "run",
        "--epochs",
        1,
        "--set",
        "grow.states=false",
    )
    model, _, _ = load_collapsed(tmp_path / "run" / "model.safetensors")
    for field in ("item", "last", "history"):
        assert model.embedding.table(field).shape[0] == len(found)
    with pytest.raises(ConfigError, match=r"'shares' was .*'history': 'item'.* it is "):
        prepare(
            source([tmp_path / "later.csv"], {**SCHEMA, "shares": {"last": "item"}}),
            tmp_path / "apart",
            extend=logs / "d",
        )
