"""Folders, patterns, partitions, files by their contents, JSON lines, files split already."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from logs_made import categories, read, source, write_csv, write_schema

from mlet.data import PreparedDataset, jsonl
from mlet.data.source import LABEL, SPLIT, field_column
from mlet.errors import ConfigError, DataError

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]
SCHEMA = {"label": "click", "categorical": ["user"]}


def rows(first: int, count: int) -> list[dict[str, object]]:
    return [{"click": row % 2, "user": f"u{row}"} for row in range(first, first + count)]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A folder as Spark writes it, with notes and empty parts."""
    lake = tmp_path / "lake"
    for day, region, first in (("2024-05-01", "a%2Fb", 0), ("2024-05-02", "c", 10)):
        folder = lake / f"day={day}" / f"region={region}"
        folder.mkdir(parents=True)
        pl.DataFrame(rows(first, 10)).write_parquet(folder / "part-0.snappy.parquet")
        pl.DataFrame(rows(0, 1)).clear().write_parquet(folder / "part-1.snappy.parquet")
        (folder / ".part-0.crc").write_bytes(b"\0\1")
        (folder / "_committed_1").write_text("{}")
    (lake / "_SUCCESS").touch()
    (lake / "_delta_log").mkdir()
    (lake / "_delta_log" / "0.json").write_text('{"commitInfo": {}}')
    folder = lake / "day=2024-05-02" / "region=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir()
    pl.DataFrame(rows(20, 10)).write_parquet(folder / "part-0")  # no suffix
    return lake


def test_a_folder_is_read_with_the_columns_of_its_partitions(lake: Path) -> None:
    schema = {**SCHEMA, "categorical": ["user", "region"], "time": "day"}
    found = read([lake], schema)
    # By the names of their folders; __HIVE_… sorts before c.
    assert found[field_column("user")].to_list() == [
        f"u{row}" for row in (*range(10), *range(20, 30), *range(10, 20))
    ]
    regions = found[field_column("region")].to_list()
    assert regions == ["a/b"] * 10 + [None] * 10 + ["c"] * 10
    days = found["time"].to_list()
    assert days[10] - days[0] == 24 * 3600 * 10**6


def test_a_columns_own_values_come_before_the_folders(tmp_path: Path) -> None:
    folder = tmp_path / "user=x"
    folder.mkdir()
    path = write_csv(folder / "t.csv", rows(0, 2))
    assert categories([path], SCHEMA, "user") == ["u0", "u1"]
    other = write_csv(folder / "s.csv", [{"click": 1, "more": 2}])
    assert categories([other], SCHEMA, "user") == ["x"]


def test_patterns(lake: Path, tmp_path: Path) -> None:
    pattern = lake / "day=*" / "region=[ac]*" / "*.parquet"
    assert len(read([pattern], SCHEMA)) == 20
    assert len(read([lake / "**" / "part-0*"], SCHEMA)) == 30
    assert len(read([lake / "day=2024-05-0[12]"], SCHEMA)) == 30, "folders that match are read"
    with pytest.raises(DataError, match=r"nothing\*: no file matches the pattern"):
        source([tmp_path / "nothing*"], SCHEMA)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "_SUCCESS").touch()
    with pytest.raises(DataError, match="empty: the folder holds no files"):
        source([tmp_path / "empty"], SCHEMA)
    named = write_csv(tmp_path / "[x]*.csv", rows(0, 3))
    write_csv(tmp_path / "x1.csv", rows(0, 5))
    assert len(read([named], SCHEMA)) == 3, "a file that is there is itself"


@pytest.mark.parametrize("suffix", ["", ".csv", ".pq", ".dat"])
def test_parquet_is_known_by_its_first_bytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    pl.DataFrame(rows(0, 4)).write_parquet(path)
    assert len(read([path], SCHEMA)) == 4


def test_an_empty_file_that_is_named_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    with pytest.raises(DataError, match=r"t\.csv: the file is empty"):
        read([tmp_path / "t.csv"], SCHEMA)


LINES = [
    {"click": True, "user": 12345678901234567890, "tags": ["a", 7, 7.0, None, ""], "price": 1.5},
    {"click": False, "user": "x|y", "tags": [], "price": None, "more": {"deep": [1]}},
    {"click": 1, "user": None, "tags": None},
    {"tags": ["b"], "click": 0, "user": "zoë", "price": 2},
]
JSON_SCHEMA = {
    "label": "click",
    "categorical": ["user"],
    "multi_valued": {"tags": "|"},
    "dense": {"price": "none"},
}


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t", "t.json.gz"])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_json_lines(tmp_path: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "read_jsonl", jsonl.read_jsonl)
    text = "\n".join(json.dumps(line) for line in LINES) + "\n\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    frames = jsonl.read_jsonl(
        path, ["click", "user", "tags", "price"], ["tags"], block_bytes=max(block, 150)
    )
    assert pl.concat(list(frames))["__line__"].to_list() == [1, 2, 3, 4]
    found = read([path], JSON_SCHEMA)
    assert found[LABEL].to_list() == [1, 0, 1, 0]
    assert found[field_column("user")].to_list() == ["12345678901234567890", "x|y", None, "zoë"]
    assert found[field_column("tags")].to_list() == [["a", "7", "7"], [], [], ["b"]]
    assert found["dense:price"].to_list() == [1.5, None, None, 2.0]


def test_bags_of_json_may_be_texts(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"click": 1, "user": "u", "tags": "a|b"}\n')
    found = read([path], {**JSON_SCHEMA, "dense": []})
    assert found[field_column("tags")].to_list() == [["a", "b"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"click": 1, "user": ', "line 3: no JSON object"),
        ("[1, 2]", "line 3: no JSON object"),
        ("click", "line 3: no JSON object"),
        ('{"click": 1, "user": NaN}', "line 3: no JSON object; .* with null, not NaN or Infinity"),
        ('{"click": 1, "user": {"id": 3}}', "line 3: column 'user' holds an object"),
        ('{"click": 1, "user": ["a"]}', "line 3: column 'user' holds a list; name it under multi"),
        ('{"click": 7, "user": "a"}', "line 3: column 'click' holds '7', expected a label"),
    ],
)
def test_damage_in_json_lines_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"click": 1, "user": "[a]"}}\n\n{line}\n{{"click": 0, "user": "b"}}\n')
    with pytest.raises(DataError, match=rf"t\.jsonl, {message}"):
        read([path], SCHEMA)


def test_no_file_counts_twice(lake: Path, tmp_path: Path) -> None:
    part = next(lake.rglob("part-0"))
    for paths in ([lake, part], [part, tmp_path / "lake" / ".." / part.relative_to(tmp_path)]):
        with pytest.raises(DataError, match=r"part-0: named twice, .* rows would count twice"):
            source(paths, SCHEMA)
    given = {"train": [part], "valid": [part], "test": [part]}
    assert len(read([], SCHEMA, given=given)) == 30, "in splits of their own they may be"


def test_a_json_array_and_a_missing_key_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('[{"click": 1, "user": "a"}]')
    with pytest.raises(DataError, match=r"one JSON array; write an object a line, as jq"):
        read([path], SCHEMA)
    path.write_text('{"click": 1, "visitor": "a"}\n')
    with pytest.raises(DataError, match="no column 'user'; the first line has click, visitor"):
        read([path], SCHEMA)


def test_files_that_are_split_already(tmp_path: Path, mlet: Mlet, lake: Path) -> None:
    write_csv(tmp_path / "valid.csv", rows(30, 6))
    test = tmp_path / "test.jsonl"
    test.write_text("\n".join(json.dumps(row) for row in rows(40, 4)))
    write_schema(tmp_path / "s.yaml", SCHEMA)
    own = ("--train-file", lake, "--valid-file", "valid.csv", "--test-file", "test.jsonl")
    mlet("prepare", "table", *own, "--schema", "s.yaml", "--out", "d")
    data = PreparedDataset(tmp_path / "d")
    assert data.schema.split_by == "given"
    assert {name: split.rows for name, split in data.schema.splits.items()} == {
        "train": 30, "valid": 6, "test": 4,
    }  # fmt: skip
    assert set(data.vocabulary("user")["category"][1:]) == {f"u{row}" for row in range(30)}
    again = ("--schema", "s.yaml", "--out", "e")
    for words in ((), own[:2], ("valid.csv", *own)):
        assert "or all of --train-file" in mlet("prepare", "table", *words, *again, code=2).stderr
    given = {"train": [lake], "valid": [tmp_path / "valid.csv"], "test": [test]}
    assert read([], SCHEMA, given=given)[SPLIT].to_list() == [0] * 30 + [1] * 6 + [2] * 4
    words = (*own, "--schema", "s.yaml", "--out", "f", "--valid", "0.3")
    assert "the rows are split already" in mlet("prepare", "table", *words, code=2).stderr
    with pytest.raises(ConfigError, match="the files are split already; leave it out"):
        source([], {**SCHEMA, "split": {"column": "part"}}, given=given)


def test_a_folder_in_a_study_is_watched(lake: Path, tmp_path: Path) -> None:
    from mlet.studies.datasets import DatasetConfig, make_ready

    write_schema(tmp_path / "s.yaml", {**SCHEMA, "categorical": ["day"]})
    config = DatasetConfig(format="table", files=[lake], schema_file=tmp_path / "s.yaml")
    make_ready(config, tmp_path / "d", lambda *_: None)
    make_ready(config, tmp_path / "d", lambda *_: None)
    part = lake / "day=2024-05-01" / "region=a%2Fb" / "part-0.snappy.parquet"
    pl.DataFrame(rows(0, 9)).write_parquet(part)
    with pytest.raises(ConfigError, match=r"part-0\.snappy\.parquet: has changed since"):
        make_ready(config, tmp_path / "d", lambda *_: None)


def test_a_column_of_splits_is_spelled_as_categories_are(tmp_path: Path) -> None:
    frame = pl.DataFrame(rows(0, 6)).with_columns(part=pl.Series([0.0, 1.0, 2.0] * 2))
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "t.parquet")
    frame.with_columns(part=pl.col("part") == 0).write_csv(tmp_path / "two.csv")
    numbers = {**SCHEMA, "split": {"column": "part"}}
    for name in ("t.csv", "t.parquet"):
        assert read([tmp_path / name], numbers)[SPLIT].to_list() == [0, 1, 2] * 2
    named = {**SCHEMA, "split": {"column": "part", "train": [True], "valid": [False]}}
    assert read([tmp_path / "two.csv"], named)[SPLIT].to_list() == [0, 1, 1] * 2
