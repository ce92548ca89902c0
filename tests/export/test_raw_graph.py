"""What a raw graph makes of raw values, before the model: the same as `mlet.Predictor`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import AvazuSource, TableSchema, TableSource
from mlet.data.readers.avazu import CATEGORICAL as AVAZU
from mlet.data.readers.registry import open_raw
from mlet.data.schema import DatasetSchema, DenseSchema
from mlet.data.source import RawSource
from mlet.errors import ConfigError, ConversionError

pytest.importorskip("onnx", reason="the extra 'onnx' is not installed: make test installs it")
import onnxruntime
from onnx import TensorProto, helper

from mlet.export.raw import RawTable
from mlet.export.raw.check import encoded
from mlet.export.raw.graph import declared, encoding_nodes
from mlet.export.raw.nodes import ML_DOMAIN, ML_OPSET, Nodes

Graph = Callable[[dict[str, Any]], dict[str, np.ndarray]]


def schema_of(
    dense: list[DenseSchema],
    categories: dict[str, list[str]],
    bags: tuple[str, ...] = (),
    nulls: tuple[object, ...] = (),
) -> tuple[DatasetSchema, dict[str, pl.DataFrame]]:
    """A table's schema and vocabularies, without data."""
    table = {
        "label": "label",
        "dense": [feature.name for feature in dense if feature.of is None],
        "categorical": [name for name in categories if name not in bags],
        "multi_valued": dict.fromkeys(bags, "|"),
        "null_values": list(nulls),
    }
    fields = [
        {"name": name, "num_categories": len(known) + 1, "multi_valued": name in bags}
        | {"min_count": 1, "total_categories": len(known)}
        for name, known in categories.items()
    ]
    splits = {name: {"rows": 1, "click_rate": 0.5} for name in ("train", "valid", "test")}
    schema = DatasetSchema.parse(
        {"source": "test", "split_by": "random", "seed": 0, "splits": splits, "fields": fields}
        | {"dense": [d.model_dump() for d in dense], "format": {"name": "table", "table": table}},
        "test",
    )
    vocabularies = {
        name: pl.DataFrame({"category": [None, *known]}, schema={"category": pl.String})
        for name, known in categories.items()
    }
    return schema, vocabularies


def graph_of(table: RawTable) -> Graph:
    """The nodes before a model as a graph of their own, its outputs the inputs of the model."""
    schema = table.schema
    nodes = Nodes("mlet.")
    encoding_nodes(nodes, table, "out:")
    names = {"dense": TensorProto.FLOAT} if schema.dense else {}
    names |= {"ids": TensorProto.INT64} if schema.one_valued else {}
    for field in schema.multi_valued:
        names |= dict.fromkeys((f"{field.name}.values", f"{field.name}.lengths"), TensorProto.INT64)
    outputs = [helper.make_tensor_value_info(f"out:{n}", t, None) for n, t in names.items()]
    inputs = [declared(column) for column in table.columns]
    graph = helper.make_graph(nodes.nodes, "raw", inputs, outputs, nodes.constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(ML_DOMAIN, ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda rows: dict(zip(names, session.run(None, rows), strict=True))


def texts(*values: str) -> np.ndarray:
    return np.array(values, object)


#: "as" holds a category that has another spelling, so none of its own are changed.
CATEGORIES = {
    "item": ["7", "", "0", "-3", "1", "12345678901234567890", "-0", "07", "é\x01"],
    "name": ["true love", "NA ", "a", "-9"],
    "as": ["7.0", "7", "True", "x"],
    "tags": ["7", "x", "1", "-9"],
}
#: Texts near to those that have several spellings, or stand for nothing.
NASTY = [
    *("7", "7.0", "7.00", "07.0", "7.", ".0", "-7.0", "-0.0", "-0", "0.0", "0", "+7", "7.01", "7 "),
    *("true", "True", "TRUE", "tRUE", "false", "False", "FALSE", "", " ", "NaN", "1e0", "1.0"),
    *(
        "12345678901234567890.0",
        "7.0.0",
        "7\n",
        "-3.0",
        "x",
        "NA",
        " NA\t",
        "NA ",
        "\u00a0NA\u2003",
    ),
    *("-9", "-9.0", " -9.00 ", "--9", "é\x01", "٣.0", "1٣.0", "a", "A", "7.0\n", "Na", "x.y"),
]
texts_like_these = st.one_of(
    st.sampled_from(NASTY), st.text(alphabet="017.-٣ \t\nNAtrue", max_size=6)
)


@pytest.mark.parametrize("nulls", [(), ("NA", -9), (0, True)])
def test_categories_are_spelled_as_in_training(nulls: tuple[object, ...]) -> None:
    schema, vocabularies = schema_of([], CATEGORIES, ("tags",), nulls)
    table = RawTable(schema, vocabularies)
    graph = graph_of(table)

    @settings(max_examples=12, deadline=None)
    @example(NASTY)
    @given(st.lists(texts_like_these, min_size=1, max_size=20))
    def same(values: list[str]) -> None:
        one_valued = {name: texts(*values) for name in ("item", "name", "as")}
        bags = ([values, values[::-1]] * len(values))[: len(values)]
        found = graph({**one_valued, "tags": np.array(bags, object)})
        raw = pl.DataFrame({**dict.fromkeys(one_valued, values), "tags": bags})
        expected = encoded(table, raw)
        assert found["ids"].T.tolist() == [column.tolist() for column in expected.ids]
        ids, offsets = expected.bags["tags"]
        assert found["tags.values"].tolist() == ids.tolist()
        assert found["tags.lengths"].tolist() == np.diff(offsets).tolist()

    same()


def test_a_number_is_one_category_however_it_is_sent() -> None:
    """What clients make of 7, 7.0 and True with str()."""
    schema, vocabularies = schema_of([], {"item": ["7", "1"], "tags": ["7"]}, ("tags",))
    graph = graph_of(RawTable(schema, vocabularies))
    sent = texts(*map(str, (7, 7.0, "7", True, 1, 1.0, "TRUE", 8, "")))
    tags = np.array([[str(7.0), ""]] * 9, object)
    found = graph({"item": sent, "tags": tags})
    assert found["ids"][:, 0].tolist() == [1, 1, 1, 2, 2, 2, 2, 0, 0]
    assert found["tags.values"].tolist() == [1] * 9
    for width in (0, 1):  # of a batch of empty bags
        empty = graph({"item": sent, "tags": np.full((9, width), "", object)})
        assert empty["tags.values"].shape == (0,)
        assert empty["tags.lengths"].tolist() == [0] * 9


def test_integers() -> None:
    categories = {"user": ["7", "", "-3", str(2**63 - 1)], "item": ["1", "a"], "site": ["5"]}
    schema, vocabularies = schema_of([], categories, nulls=(-1, "NA"))
    table = RawTable(schema, vocabularies, ["user", "site"])
    assert [tuple(column) for column in table.columns] == [
        ("user", "integer"), ("item", "text"), ("site", "integer"),
    ]  # fmt: skip
    sent = {"user": np.array([7, -1, -3, 2**63 - 1, 8]), "site": np.array([5, 0, -1, 5, 5])}
    found = graph_of(table)({**sent, "item": texts("a", "1.0", "NA", "b", "1")})
    assert found["ids"].T.tolist() == [[1, 2, 3, 4, 0], [2, 1, 0, 0, 1], [1, 0, 0, 1, 1]]
    for field, why in (("item", "its category 'a' is no 64-bit integer"), ("x", "no one-valued")):
        with pytest.raises(ConfigError, match=f"int64 '{field}': {why}"):
            RawTable(schema, vocabularies, [field])
    schema, vocabularies = schema_of([], categories)
    with pytest.raises(ConfigError, match="int64 'user': a missing value is a category of this"):
        RawTable(schema, vocabularies, ["user"])


def test_dense_features_are_scaled_as_in_training() -> None:
    quantiles = np.sort(np.random.default_rng(0).normal(size=201).round(1)).tolist()
    entries = [
        DenseSchema(name="plain", scale="none"),
        DenseSchema(name="rank", scale="quantile", quantiles=quantiles),
        DenseSchema(name="rank is missing", scale="missing", of="rank"),
        DenseSchema(name="count", scale="log"),
        DenseSchema(name="gain", scale="signed_log", missing_in_training=False),
        DenseSchema(name="age", scale="standard", mean=1.7e9, deviation=3.0),
        DenseSchema(name="one value", scale="quantile", quantiles=[2.0] * 201),
    ]
    schema, vocabularies = schema_of(entries, {"item": ["a"]}, nulls=(-1, "NA", 2.5))
    table = RawTable(schema, vocabularies)
    graph = graph_of(table)
    draw, rows = np.random.default_rng(1), 400
    some = [0.0, -1.0, 2.5, 2.0, -0.0, 1e-12, 1.7e9, 1.7e9 + 1, 1e30, -1e30, np.nan, *quantiles]
    sent = {f.name: draw.choice(some, rows) for f in schema.raw_dense}
    sent["gain"] = draw.choice([3.0, 0.0, -7.25, 1e-9], rows)
    sent["rank"][:300] += draw.normal(size=300)
    raw = pl.DataFrame({name: pl.Series(values) for name, values in sent.items()})
    expected = encoded(table, raw.with_columns(item=pl.lit("a"))).dense
    found = graph({**sent, "item": texts(*["a"] * rows)})["dense"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    good = {**{name: values[:2] for name, values in sent.items()}, "item": texts("a", "b")}
    for name, value, why in (
        ("gain", np.nan, "missing or NaN that never was in training, of: gain"),
        ("gain", -1, "missing or NaN that never was in training, of: gain"),
        ("count", -np.inf, "a dense feature is infinite"),
        ("plain", 1e39, "a dense feature is too large for float32"),
    ):
        with pytest.raises(Exception, match=why):
            graph({**good, name: np.array([1.0, value])})


def test_columns_of_different_lengths_are_refused() -> None:
    entry = DenseSchema(name="x", scale="none")
    schema, vocabularies = schema_of([entry], {"item": ["a"], "tags": ["b"]}, ("tags",))
    graph = graph_of(RawTable(schema, vocabularies))
    rows = {"x": np.zeros(2), "item": texts("a", "b"), "tags": np.array([["b"], [""]], object)}
    assert graph(rows)["tags.lengths"].tolist() == [1, 0]
    for name, values in rows.items():
        with pytest.raises(Exception, match=r"[Cc]oncat"):
            graph({**rows, name: values[:1]})


def test_names_that_a_graph_cannot_have() -> None:
    entry = DenseSchema(name="item", scale="none")
    schema, vocabularies = schema_of([], {"item": ["a"]})
    schema = schema.model_copy(update={"dense": [entry], "format": None})
    with pytest.raises(ConversionError, match="a dense feature and a field are both called 'item'"):
        RawTable(schema, vocabularies)


def prepared(source: RawSource, folder: Path) -> tuple[PreparedDataset, RawTable]:
    rule = SplitRule(by="order", valid=0.2, test=0.2)
    prepare(source, folder, split=rule)
    data = PreparedDataset(folder)
    return data, RawTable(data.schema, vocabularies_of(data))


def vocabularies_of(data: PreparedDataset) -> dict[str, pl.DataFrame]:
    return {field.name: data.vocabulary(field.name) for field in data.schema.fields}


def all_ids(data: PreparedDataset) -> list[list[int]]:
    parts = [data.split(split) for split in ("train", "valid", "test")]
    fields = range(len(parts[0].ids))
    return [list(itertools.chain(*(part.ids[f].tolist() for part in parts))) for f in fields]


def test_avazu_takes_the_hour_as_its_files_have_it(tmp_path: Path) -> None:
    hours = [14022823, 14022900, 16022805, 16022912, 16030100, 0, 123, 99123123, 14103022, 10121709]
    hours = [hour for hour in hours if hour not in (0, 123, 14022900)] * 5
    lines = [f"1,{place % 2},{hour:08d},{','.join('ab'[place % 2] for _ in AVAZU)}"
             for place, hour in enumerate(hours)]  # fmt: skip
    header = ",".join(("id", "click", "hour", *AVAZU))
    (tmp_path / "train.csv").write_text("\n".join([header, *lines, ""]))
    data, table = prepared(AvazuSource([tmp_path / "train.csv"]), tmp_path / "data")
    assert [column.name for column in table.columns] == [*AVAZU, "hour"]
    graph = graph_of(table)
    rows = {name: texts(*("ab"[place % 2] for place in range(len(hours)))) for name in AVAZU}
    assert graph({**rows, "hour": np.array(hours)})["ids"].T.tolist() == all_ids(data)
    one = {name: values[:1] for name, values in rows.items()}
    for wrong in (14022900, 14130100, 14000100, 14010024, 14010000 - 1, -1, 14, 100010100):
        with pytest.raises(Exception, match="'hour' holds what is not an hour as YYMMDDHH"):
            graph({**one, "hour": np.array([wrong])})
    every = [int(f"{year:02d}{month:02d}1207") for year in range(100) for month in range(1, 13)]
    read = [table.time.read(hour)["weekday"] for hour in every] if table.time else []
    names = data.vocabulary("weekday")["category"].to_list()
    many = {name: values[:1].repeat(len(every)) for name, values in rows.items()}
    place = [field.name for field in data.schema.one_valued].index("weekday")
    found = graph({**many, "hour": np.array(every)})["ids"][:, place]
    assert found.tolist() == [names.index(day) if day in names else 0 for day in read]


def test_movielens_takes_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n1,A (1999),Drama|War\n2,B,(no genres listed)\n"
    )
    times = [0, 86_399, 86_400, 951_782_399, 951_782_400, 1_700_000_000, 1_709_164_800, -1]
    lines = [
        f"{place % 3},{1 + place % 2},{2 + place % 3},{time}"
        for place, time in enumerate(times * 4)
    ]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines, ""]))
    data, table = prepared(open_raw("movielens", [folder]), tmp_path / "data")
    assert [column.name for column in table.columns] == [
        *("user", "film", "year", "timestamp", "genres")
    ]
    rows = range(len(lines))
    found = graph_of(table)(
        {
            "user": texts(*(str(place % 3) for place in rows)),
            "film": texts(*(str(1 + place % 2) for place in rows)),
            "year": texts(*(("1999", "")[place % 2] for place in rows)),
            "timestamp": np.array(times * 4),
            "genres": np.array(
                [("Drama", "War") if p % 2 == 0 else ("", "") for p in rows], object
            ),
        }
    )
    assert found["ids"].T.tolist() == all_ids(data)
    assert found["genres.lengths"].tolist() == [2, 0] * (len(lines) // 2)


def test_real_integers(debdeps: Path, tmp_path: Path) -> None:
    pl.read_parquet(debdeps).head(3_000).write_parquet(tmp_path / "rows.parquet")
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    fields = [name for name in rows.columns if name not in ("label", "part")]
    form = TableSchema(label="label", categorical=fields)
    data, by_text = prepared(TableSource([tmp_path / "rows.parquet"], form), tmp_path / "data")
    integers = RawTable(data.schema, vocabularies_of(data), fields)
    as_texts = {name: rows[name].cast(pl.String).to_numpy().astype(object) for name in fields}
    as_integers = {name: rows[name].cast(pl.Int64).to_numpy() for name in fields}
    for table, sent in ((by_text, as_texts), (integers, as_integers)):
        assert graph_of(table)(sent)["ids"].T.tolist() == all_ids(data)


def test_large_vocabularies() -> None:
    count = 100_000
    known = [f"{place:08x}" for place in range(count)]
    schema, vocabularies = schema_of([], {"item": known, "user": list(map(str, range(count)))})
    table = RawTable(schema, vocabularies, ["user"])
    nodes = Nodes("mlet.")
    encoding_nodes(nodes, table, "out:")
    sizes = sorted(node.ByteSize() for node in nodes.nodes)[-2:]
    assert sizes[1] < count * (8 + 2 + 4) + 500, "a text, its length and its id"
    assert sizes[0] < count * 9
    found = graph_of(table)({"item": texts(known[0], known[-1]), "user": np.array([5, count])})
    assert found["ids"].tolist() == [[1, 6], [count, 0]]
