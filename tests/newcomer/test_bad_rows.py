"""Missing values by other names, quotes, headers, separators, and rows that cannot be read."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from logs_made import read, source, write_schema

from mlet.data import PreparedDataset
from mlet.data.bad_rows import BadRows
from mlet.data.delimited import read_delimited
from mlet.data.source import LABEL, LINE, dense_column, field_column
from mlet.errors import DataError

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]
SCHEMA = {"label": "click", "categorical": ["user"]}


def text(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in lines))
    return path


def test_what_stands_for_a_missing_value(tmp_path: Path) -> None:
    path = text(
        tmp_path / "t.csv", "click,user,age,tags", "1,NA,-1,a|NA", r"0,\N,4,NA", "1,u,-1.0,"
    )
    schema = {
        **SCHEMA,
        "dense": {"age": "none"},
        "multi_valued": {"tags": "|"},
        "null_values": ["NA", "\\N", -1],
    }
    found = read([path], schema)
    assert found[field_column("user")].to_list() == [None, None, "u"]
    assert found[dense_column("age")].to_list() == [None, 4.0, None]
    assert found[field_column("tags")].to_list() == [["a"], [], []]
    typed = tmp_path / "t.parquet"
    pl.DataFrame(
        {"click": [1, 0], "user": ["NA", "u"], "age": [-1, 3], "tags": [["NA", "a"], None]}
    ).write_parquet(typed)
    found = read([typed], schema)
    assert found[field_column("user")].to_list() == [None, "u"]
    assert found[dense_column("age")].to_list() == [None, 3.0]
    assert found[field_column("tags")].to_list() == [["a"], []]
    path = text(tmp_path / "u.csv", "click,user", "NA,u")
    with pytest.raises(DataError, match="column 'click' holds nothing, expected a label"):
        read([path], {**SCHEMA, "null_values": ["NA"]})


def test_an_empty_cell_is_missing_in_quotes_too(tmp_path: Path) -> None:
    """Some programs quote every cell."""
    path = text(tmp_path / "t.csv", "click,user,age,tags", '"1","","",""', '"0","u","4","a"')
    found = read(
        [path], {**SCHEMA, "dense": {"age": "none"}, "multi_valued": {"tags": "|"}}
    ).with_columns(pl.col(field_column("user")).fill_null(""))
    assert found[field_column("user")].to_list() == ["", "u"]
    assert found[dense_column("age")].to_list() == [None, 4.0]
    path = text(tmp_path / "label.csv", "click,user", '"","u"')
    with pytest.raises(DataError, match="line 2: column 'click' holds '', expected a label"):
        read([path], SCHEMA)


@pytest.mark.parametrize("header", ['"click","user"', 'click,"user"', '\ufeff"click","user"'])
def test_quoted_headers(tmp_path: Path, header: str) -> None:
    path = text(tmp_path / "t.csv", header, "1,u")
    assert read([path], SCHEMA)[field_column("user")].to_list() == ["u"]


def test_quotes_that_are_characters_under_a_quoted_header(tmp_path: Path) -> None:
    path = text(tmp_path / "t.csv", '"click","user"', '1,12" vinyl', '0,"the')
    with pytest.raises(DataError, match=r"line 2: a quote in the middle of a cell.*quote: none"):
        read([path], SCHEMA)
    found = read([path], {**SCHEMA, "quote": "none"})
    assert found[field_column("user")].to_list() == ['12" vinyl', '"the']


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_wrong_separator_is_hinted_at(tmp_path: Path, separator: str) -> None:
    lines = (separator.join(cells) for cells in (("click", "user", "x"), ("1", "a,b", "c,d")))
    path = text(tmp_path / "t.csv", *lines)
    shown = "\\t" if separator == "\t" else separator
    with pytest.raises(DataError) as error:
        read([path], SCHEMA)
    assert f'separator: "{shown}"' in str(error.value)
    assert len(read([path], {**SCHEMA, "separator": separator})) == 1


BAD = [
    "click,user,price",
    "1,a,2.5",  # 2
    "0,b",  # 3: too short
    "0,b,3,4",  # 4: too long
    b"1,\xff\xfe,1",  # 5: no text
    "maybe,c,1",  # 6: no label
    "1,d,dear",  # 7: no number
    "0,e,1",  # 8
    '1,12" vinyl,3',  # 9: a quote
    "huh,f,cheap",  # 10: two things wrong, one bad row
    '1,"two\nlines",3',  # 11 and 12
    "0,\0\0,1",  # 13: what a crash leaves
    "1,g,4",  # 14
]
BAD_SCHEMA = {**SCHEMA, "dense": {"price": "none"}}
REASONS = {
    "another number of columns": 2,
    "not UTF-8 text": 2,
    "column 'click' unreadable": 2,
    "column 'price' unreadable": 1,
    "a quote in the middle of a cell": 1,
}


def test_bad_rows_are_left_out_and_counted_by_reason(tmp_path: Path) -> None:
    path = text(tmp_path / "t.csv", *BAD)
    with pytest.raises(DataError, match="line"):
        read([path], BAD_SCHEMA)
    kept = source([path], BAD_SCHEMA, skip_bad_rows=8)
    found = pl.concat(list(kept.frames()))
    assert found[field_column("user")].to_list() == ["a", "e", "two\nlines", "g"]
    assert found[LABEL].to_list() == [1, 0, 1, 1]
    assert found[dense_column("price")].to_list() == [2.5, 1, 3, 4]
    assert kept.bad_rows is not None
    assert kept.bad_rows.counts == REASONS
    assert "line 3: 2 columns where 3" in kept.bad_rows.first["another number of columns"]
    list(kept.frames())
    assert kept.bad_rows.total == 8, "counted anew when read again"
    with pytest.raises(DataError, match="more rows are bad than the 7 that may be skipped"):
        read([path], BAD_SCHEMA, skip_bad_rows=7)


@pytest.mark.parametrize("size", [1, 5, 20, 1 << 20])
def test_the_same_rows_are_left_out_whatever_the_block(tmp_path: Path, size: int) -> None:
    path = text(tmp_path / "t.csv", *BAD)
    bad = BadRows(100)
    frames = read_delimited(path, ",", None, quoted=True, block_bytes=size, bad_rows=bad)
    found = pl.concat(list(frames))
    assert found["user"].to_list() == ["a", "c", "d", "e", "f", "two\nlines", "g"]
    assert found[LINE].to_list() == [2, 6, 7, 8, 10, 11, 14]
    assert bad.total == 5


@pytest.mark.parametrize("seed", range(20))
def test_good_rows_survive_bad_ones_anywhere(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    good = [
        f'{row},"c{row}{draw.choice(["", ",", chr(10), """""", "x"])}",{draw.choice("ab")}'
        for row in range(60)
    ]
    bad = [
        '1,12" tv,x',
        '1,"open,x',
        '1,"a"b,x',
        "1,2",
        b"1,\xff,x",
        b"1,\0,x",
        "1,2,3,4",
        '1,a","b',
    ]
    lines: list[str | bytes] = list(good)
    for _ in range(draw.randrange(1, 9)):
        lines.insert(draw.randrange(len(lines)), draw.choice(bad))
    path = text(tmp_path / "t.csv", "a,b,c", *lines)
    expected = [str(row) for row in range(60)]
    for size in (7, 300, 1 << 20):
        rows = BadRows(100)
        frames = read_delimited(path, ",", None, quoted=True, block_bytes=size, bad_rows=rows)
        assert pl.concat(list(frames))["a"].to_list() == expected
        assert rows.total == len(lines) - 60


def test_a_quote_that_is_never_closed_costs_its_line(tmp_path: Path) -> None:
    path = text(tmp_path / "t.csv", "click,user", '1,"open', "0,a", "1,b")
    with pytest.raises(DataError, match="never closed"):
        read([path], SCHEMA)
    found = read([path], SCHEMA, skip_bad_rows=1)
    assert found[field_column("user")].to_list() == ["a", "b"]


def test_a_header_that_cannot_be_read_is_not_skipped(tmp_path: Path) -> None:
    path = text(tmp_path / "t.csv", b"click,us\xffer", "1,a")
    with pytest.raises(DataError, match="line 1: the column names cannot be read"):
        read([path], SCHEMA, skip_bad_rows=9)


def test_bad_rows_of_other_files_and_columns(tmp_path: Path) -> None:
    json = text(
        tmp_path / "t.jsonl", '{"click": 1, "user": "a", "when": "2024-01-01"}', "{oops",
        '{"click": 1, "user": "b", "when": "soon"}', '{"click": 0, "user": "c"}', b'{"\xff": 1}',
        '{"click": 1, "user": ["a"], "when": "2024-01-01"}', '{"click": 1, "user": NaN}',
    )  # fmt: skip
    typed = tmp_path / "t.parquet"
    pl.DataFrame(
        {"click": [1, 5, 0], "user": ["d", "e", "f"], "when": ["2024-01-02", "2024-01-02", None]}
    ).write_parquet(typed)
    kept = source([json, typed], {**SCHEMA, "time": "when"}, skip_bad_rows=10)
    found = pl.concat(list(kept.frames()))
    assert found[field_column("user")].to_list() == ["a", "d"]
    assert kept.bad_rows is not None
    assert kept.bad_rows.counts == {
        "no JSON object": 2, "not UTF-8 text": 1, "column 'when' unreadable": 3,
        "column 'click' unreadable": 1, "column 'user' unreadable": 1,
    }  # fmt: skip
    for path in (text(tmp_path / "u.jsonl", *['{"click": 1, "user": []}'] * 9),
                 text(tmp_path / "u.csv", "click,user", *["1"] * 9)):  # fmt: skip
        unread = source([path], SCHEMA, skip_bad_rows=10)
        with pytest.raises(DataError, match=f"no row can be read; .*{path.name}, line"):
            list(unread.frames())


def test_a_quote_that_swallows_rows_is_told(tmp_path: Path) -> None:
    lines = [f"1,u{row}" for row in range(300)]
    lines[10], lines[200] = '1,"u', 'and"'
    path = text(tmp_path / "t.csv", "click,user", *lines)
    with pytest.warns(UserWarning, match=r"lines 12 to 202 are one row, .*quote: none"):
        assert len(read([path], SCHEMA)) == 110
    lines[20], lines[200] = 'and"', "1,u"
    path = text(tmp_path / "u.csv", "click,user", *lines)
    assert len(read([path], SCHEMA)) == 290, "a text of a few lines"


def test_the_command_skips_and_tells(tmp_path: Path, mlet: Mlet) -> None:
    good = [f"{row % 2},u{row % 5},{row}" for row in range(100)]
    text(tmp_path / "t.csv", *BAD, *good)
    write_schema(tmp_path / "s.yaml", BAD_SCHEMA)
    words = ("prepare", "table", "t.csv", "--schema", "s.yaml", "--out", "d", "--skip-bad-rows")
    error = mlet(*words, 3, code=2).stderr
    assert "more rows are bad than the 3 that may be skipped" in error
    assert not (tmp_path / "d").exists()
    shown = mlet(*words, 10).stdout
    assert "8 rows skipped, of 10 that may be" in shown
    for reason, count in REASONS.items():
        line = next(line for line in shown.splitlines() if reason in line)
        assert line.rstrip(" │").endswith(f" {count}")
    assert sum(s.rows for s in PreparedDataset(tmp_path / "d").schema.splits.values()) == 104
