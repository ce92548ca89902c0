"""Labels of every kind; one category whatever the file; a warning where files differ."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from logs_made import categories, read, source, write_csv, write_schema

from mlet.data.readers import TableSchema, TableSource
from mlet.data.source import LABEL, field_column
from mlet.errors import ConfigError, DataError

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]
SCHEMA = {"label": "click", "categorical": ["user"]}


def csv_of(path: Path, **columns: list[object]) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return write_csv(path, rows)


def labels(path: Path, **schema: object) -> list[int]:
    return read([path], {**SCHEMA, **schema})[LABEL].to_list()


@pytest.mark.parametrize(
    ("no", "yes"),
    [
        ("False", "True"), ("false", "true"), ("FALSE", "TRUE"), ("f", "t"), ("no", "yes"),
        ("N", "Y"), ("0", "1"), ("0.0", "1.0"),
    ],
)  # fmt: skip
def test_words_of_labels(tmp_path: Path, no: str, yes: str) -> None:
    path = csv_of(tmp_path / "t.csv", click=[no, yes, yes], user=list("abc"))
    assert labels(path) == [0, 1, 1]


def test_boolean_labels_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"click": [False, True], "user": ["a", "b"]}).write_parquet(path)
    assert labels(path) == [0, 1]
    assert labels(path, positive=[False]) == [1, 0]
    pl.DataFrame({"click": [False, None], "user": ["a", "b"]}).write_parquet(path)
    with pytest.raises(DataError, match="line 2: column 'click' holds nothing, expected a label"):
        labels(path)


def test_values_that_are_clicks(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "t.csv", click=["buy", "view", "Basket", ""], user=list("abcd"))
    with pytest.raises(DataError, match=r"holds 'buy', expected a label.*positive or threshold"):
        labels(path)
    assert labels(path, positive=["buy", "basket"]) == [1, 0, 1, 0]
    with pytest.warns(UserWarning, match="no row holds the positive value 'purchase'"):
        assert labels(path, positive=["buy", "purchase"]) == [1, 0, 0, 0]
    path = csv_of(tmp_path / "n.csv", click=[1, 2.0, 5], user=list("abc"))
    assert labels(path, positive=[2, 5.0]) == [0, 1, 1]
    path = csv_of(tmp_path / "y.csv", click=["yes", "no", "maybe"], user=list("abc"))
    (tmp_path / "s.yaml").write_text("label: click\npositive: [yes]\ncategorical: [user]\n")
    schema = TableSchema.load(tmp_path / "s.yaml")
    assert schema.positive == [True], "which YAML takes yes for"
    assert next(TableSource([path], schema).frames())[LABEL].to_list() == [1, 0, 0]


def test_labels_from_a_number_on(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "t.csv", click=[3.5, 4, 5, -1], user=list("abcd"))
    assert labels(path, threshold=4) == [0, 1, 1, 0]
    path = csv_of(tmp_path / "u.csv", click=["4", ""], user=list("ab"))
    with pytest.raises(DataError, match="line 3: column 'click' holds nothing, expected a finite"):
        labels(path, threshold=4)
    with pytest.raises(ConfigError, match="'positive' or 'threshold', not both"):
        labels(path, threshold=4, positive=[4])


def test_a_category_is_one_whatever_the_file(tmp_path: Path) -> None:
    files = [
        csv_of(tmp_path / "a.csv", click=[0, 1, 0], user=["7", "8", "007"]),
        csv_of(tmp_path / "b.csv", click=[0, 1, 0], user=["7.0", "8.00", "8.5"]),
        tmp_path / "c.parquet",
        tmp_path / "d.jsonl",
    ]
    pl.DataFrame({"click": [0, 1], "user": [7.0, 8.5]}).write_parquet(files[2])
    files[3].write_text('{"click": 0, "user": 7}\n{"click": 1, "user": 8.0}\n')
    with pytest.warns(UserWarning, match="column 'user' holds texts in"):
        found = categories(files, SCHEMA, "user")
    assert found == ["7", "8", "007", "7", "8", "8.5", "7", "8.5", "7", "8"]


def test_true_is_true_however_it_is_written(tmp_path: Path) -> None:
    files = [
        csv_of(tmp_path / "a.csv", click=[0, 1], user=["True", "false"]),
        csv_of(tmp_path / "b.csv", click=[0, 1], user=["TRUE", "False"]),
        tmp_path / "c.parquet",
        tmp_path / "d.jsonl",
    ]
    pl.DataFrame({"click": [0, 1], "user": [True, False]}).write_parquet(files[2])
    files[3].write_text('{"click": 0, "user": true}\n{"click": 1, "user": false}\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(set(categories(files, SCHEMA, "user"))) == 2
    bag = csv_of(tmp_path / "e.csv", click=[0], user=["True|7.0|7.5|x"])
    schema = {"label": "click", "multi_valued": {"user": "|"}}
    assert read([bag], schema)[field_column("user")].to_list() == [["1", "7", "7.5", "x"]]


@pytest.mark.parametrize(
    ("one", "other", "warned"),
    [
        (["1", "2"], ["u1", "u2"], True),
        (["1", "2"], ["01", "02"], True),
        (["1", "2"], ["1.5", "2.5"], True),
        (["1", "2"], ["True", "False"], True),
        (["1", "2"], ["1.0", "2.0"], False),
        (["a", "b"], ["c", ""], False),
        (["1", "2"], ["", ""], False),
    ],
)
def test_files_whose_columns_differ_in_type_are_named(
    tmp_path: Path, one: list[object], other: list[object], warned: bool
) -> None:
    files = [
        csv_of(tmp_path / "one.csv", click=[0, 1], user=one),
        csv_of(tmp_path / "other.csv", click=[0, 1], user=other),
    ]
    if warned:
        with pytest.warns(UserWarning, match=r"column 'user' holds .*one\.csv, .*other\.csv"):
            read(files, SCHEMA)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(files, SCHEMA)


def test_typed_files_whose_types_differ_are_named(tmp_path: Path) -> None:
    files = [tmp_path / "one.parquet", tmp_path / "other.parquet"]
    pl.DataFrame({"click": [0, 1], "user": [1, 2]}).write_parquet(files[0])
    pl.DataFrame({"click": [0, 1], "user": ["u1", "u2"]}).write_parquet(files[1])
    with pytest.warns(UserWarning, match="'user' holds whole numbers in .*, texts in"):
        assert len(list(source(files, SCHEMA).frames())) == 2


def test_the_command_says_it_all(tmp_path: Path, mlet: Mlet) -> None:
    many = [row % 5 for row in range(100)]
    csv_of(tmp_path / "a.csv", click=[row + 1 for row in many], user=many)
    csv_of(tmp_path / "b.csv", click=[row + 1 for row in many], user=[f"u{row}" for row in many])
    write_schema(tmp_path / "s.yaml", {**SCHEMA, "threshold": 4})
    shown = mlet("prepare", "table", "a.csv", "b.csv", "--schema", "s.yaml", "--out", "d",
                 "--split", "order")  # fmt: skip
    assert "warning: column 'user' holds whole numbers in a.csv, texts in b.csv" in shown.stderr
    assert shown.stdout.count("40.00%") == 3
