"""A first schema guessed from a file: it works as it is, or says what it cannot know."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from logs_made import moments, write_csv

from mlet.data import PreparedDataset
from mlet.data.guess import guess_schema
from mlet.data.readers import TableSchema
from mlet.errors import DataError

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]


def rows(count: int = 300, **more: Callable[[int], object]) -> list[dict[str, object]]:
    """A log with a bit of everything; ``more`` adds or replaces columns, by the row's number."""
    columns: dict[str, Callable[[int], object]] = {
        "row_id": lambda i: f"r{i}",
        "click": lambda i: ("yes", "no")[i * i % 3 % 2],
        "user": lambda i: f"u{i % 23}",
        "code": lambda i: i % 11,
        "price": lambda i: round(i % 17 * 1.25, 2),
        "balance": lambda i: "NA" if i % 5 == 0 else round((i % 9 - 4) / 4, 2),
        "tags": lambda i: ("a|b", "b", "a|c|b")[i % 3],
        "when": lambda i: moments(count)[i].isoformat(),
        "site": lambda i: "x",
        **more,
    }
    return [{name: value(i) for name, value in columns.items()} for i in range(count)]


def guessed(path: Path) -> dict[str, Any]:
    return yaml.safe_load(guess_schema(path)) or {}


def test_a_guess_is_a_schema_that_prepares(tmp_path: Path, mlet: Mlet) -> None:
    write_csv(tmp_path / "log.csv", rows(), ";")
    schema = mlet("prepare", "table", "--guess", "log.csv").stdout
    (tmp_path / "schema.yaml").write_text(schema)
    parsed = TableSchema.load(tmp_path / "schema.yaml")
    assert parsed.label == "click"
    assert parsed.categorical == ["user", "code"]
    assert parsed.multi_valued == {"tags": "|"}
    assert parsed.time == "when"
    assert parsed.separator == ";"
    assert parsed.null_values == ["NA"]
    assert parsed.dense["price"].scale == "log"
    assert parsed.dense["balance"].scale == "signed_log"
    assert parsed.dense["balance"].missing_indicator
    assert "row_id: another value in every row" in schema
    assert "site: always x" in schema
    assert "A quantity belongs under dense" in schema
    mlet("prepare", "table", "log.csv", "--schema", "schema.yaml", "--out", "d")
    names = [feature.name for feature in PreparedDataset(tmp_path / "d").schema.dense]
    assert names == ["price", "balance", "balance is missing"]


def test_a_label_that_cannot_be_known_is_asked_for(tmp_path: Path, mlet: Mlet) -> None:
    two = {"seen": lambda i: i % 2, "refunded": lambda i: i % 3 // 2}
    several = rows(**two, click=lambda i: "x")
    path = write_csv(tmp_path / "log.csv", several)
    text = guess_schema(path)
    assert "label" not in yaml.safe_load(text)
    assert "# label: seen\n# label: refunded" in text
    assert guessed(path).get("dense"), "the rest is there"
    (tmp_path / "schema.yaml").write_text(text)
    words = ("prepare", "table", "log.csv", "--schema", "schema.yaml", "--out", "d")
    assert "'label' is missing" in mlet(*words, code=2).stderr
    named = write_csv(tmp_path / "named.csv", rows(**two))
    assert guessed(named)["label"] == "click", "of several, the one that is called so"
    lone = write_csv(tmp_path / "lone.csv", rows(click=lambda i: "x", app=two["seen"]))
    assert "label" not in guessed(lone), "two values alone make no label"
    none = write_csv(tmp_path / "none.csv", rows(click=lambda i: i % 5))
    assert "label" not in guessed(none)
    assert "# threshold: 4" in guess_schema(none)


@pytest.mark.parametrize(
    ("show", "expected"),
    [
        ("%Y-%m-%d %H:%M:%S", None),
        ("%Y%m%d", None),
        ("%d/%m/%Y %H:%M", "%d/%m/%Y %H:%M"),
        ("%m-%d-%Y", "%m-%d-%Y"),
        ("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M:%S"),
    ],
)
def test_times_of_one_meaning(tmp_path: Path, show: str, expected: str | None) -> None:
    when = lambda i: f"{moments(300)[i]:{show}}"  # noqa: E731
    found = guessed(write_csv(tmp_path / "log.csv", rows(when=when)))
    assert found["time"] == "when"
    assert found.get("time_format") == expected


def test_times_of_two_meanings_are_not_guessed(tmp_path: Path) -> None:
    days = [dt.date(2024, 1 + i % 12, 1 + i // 12 % 12) for i in range(300)]
    path = write_csv(tmp_path / "log.csv", rows(when=lambda i: f"{days[i]:%d/%m/%Y}"))
    text = guess_schema(path)
    assert "time_format" not in yaml.safe_load(text)
    assert '# time_format: "%d/%m/%Y"  # day first' in text
    assert '# time_format: "%m/%d/%Y"  # month first' in text
    several = rows(served=lambda i: moments(300)[i].date())
    text = guess_schema(write_csv(tmp_path / "two.csv", several))
    assert "time" not in yaml.safe_load(text)
    assert "# time: when" in text
    assert "# time: served" in text


def test_seconds_are_time_and_other_large_numbers_are_not(tmp_path: Path) -> None:
    seconds = rows(when=lambda i: 1_700_000_000 + 60 * i)
    assert guessed(write_csv(tmp_path / "a.csv", seconds))["time"] == "when"
    numbers = rows(when=lambda i: 9_900_000_000 + i % 7)
    found = guessed(write_csv(tmp_path / "b.csv", numbers))
    assert "time" not in found
    assert "when" in found["categorical"]


@pytest.mark.parametrize("per_second", [10**3, 10**6, 10**9])
def test_finer_units_are_time_too(tmp_path: Path, per_second: int) -> None:
    finer = rows(when=lambda i: (1_700_000_000 + 60 * i) * per_second)
    assert guessed(write_csv(tmp_path / "log.csv", finer))["time"] == "when"


def test_what_is_called_time(tmp_path: Path) -> None:
    # As MovieLens has them, from 1995 on.
    old = rows(when=lambda i: "x", timestamp=lambda i: 789_652_009 + 60 * (i % 90))
    assert guessed(write_csv(tmp_path / "a.csv", old))["time"] == "timestamp"
    places = rows(when=lambda i: "x", event_time=lambda i: i % 90)
    text = guess_schema(write_csv(tmp_path / "b.csv", places))
    assert "time" not in yaml.safe_load(text)
    assert "# time: event_time  # as 0, if it says when" in text


def test_parquet_json_lines_and_folders(tmp_path: Path) -> None:
    many = [
        {**row, "tags": str(row["tags"]).split("|"), "click": row["click"] == "yes"}
        for row in rows(balance=lambda i: None if i % 5 == 0 else i % 9 / 4 - 1)
    ]
    folder = tmp_path / "lake" / "day=2024-05-01"
    folder.mkdir(parents=True)
    pl.DataFrame(many).write_parquet(folder / "part-0")
    lines = tmp_path / "log.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in many))
    for path in (tmp_path / "lake", folder / "part-0", lines):
        found = guessed(path)
        assert found["label"] == "click"
        assert found["categorical"] == ["user", "code"]
        assert found["multi_valued"] == {"tags": "|"}
        assert found["dense"]["balance"] == {"scale": "signed_log", "missing_indicator": True}


def test_rows_that_cannot_be_read_are_named_and_do_not_matter(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", rows(), ";")
    whole = guess_schema(path)
    lines = path.read_text().splitlines()
    lines[60] = lines[60][:9]
    path.write_text("\n".join([*lines[:90], lines[60], *lines[90:]]) + "\n")
    text = guess_schema(path)
    assert "line 61: 3 columns where 9" in text
    assert yaml.safe_load(text) == yaml.safe_load(whole)
    with_quotes = [line.replace(";u", ';12" u') for line in lines]
    path.write_text("\n".join(with_quotes) + "\n")
    assert guessed(path)["quote"] == "none"
    json_lines = tmp_path / "log.jsonl"
    json_lines.write_text("\n".join(["{oops", *(json.dumps(row) for row in rows())]))
    assert "line 1: no JSON object" in guess_schema(json_lines)


def test_a_split_and_names_that_yaml_would_misread(tmp_path: Path) -> None:
    named = {"yes": lambda i: f"a{i % 4}", "two words": lambda i: f"b{i % 4}"}
    part = lambda i: ("train", "valid", "test")[i % 3]  # noqa: E731
    path = write_csv(tmp_path / "log.csv", rows(part=part, **named))
    found = guessed(path)
    assert found["split"] == {"column": "part"}
    assert {"yes", "two words"} <= set(found["categorical"])
    TableSchema.parse(found, "guess").check()
    numbered = guessed(
        write_csv(tmp_path / "n.csv", rows(part=lambda i: i % 3, fold=lambda i: i % 3))
    )
    assert numbered["split"] == {"column": "part"}
    assert "fold" in numbered["categorical"], "that is no name of a column of splits alone"


def test_one_value_and_nothing_are_two(tmp_path: Path) -> None:
    seen = rows(coupon=lambda i: "yes" if i % 4 else None)
    assert "coupon" in guessed(write_csv(tmp_path / "log.csv", seen))["categorical"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t7\ta\n0\t8\tb\n", "line 1: '1' is no name of a column; put a line with the names"),
        ("1,7,1\n0,8,0\n", "line 1: repeated column names: '1'; put a line with the names"),
        ("a,b\n", "no rows to guess from"),
        ("", "the file is empty"),
        ("words\nand words\n", "no separator"),
    ],
)
def test_what_is_no_table_is_not_guessed(
    tmp_path: Path, mlet: Mlet, text: str, message: str
) -> None:
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        guess_schema(tmp_path / "log.txt")
    if "names" in message:
        assert message in mlet("prepare", "table", "--guess", "log.txt", code=2).stderr
