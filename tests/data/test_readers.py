"""Each published format, on small files written here and on the real samples."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import (
    AvazuSource,
    CriteoSource,
    LibFMSource,
    MovieLensSource,
    TableSchema,
    TableSource,
    table,
)
from mlet.data.readers.avazu import CATEGORICAL as AVAZU
from mlet.data.source import LABEL, SPLIT, TIME, RawSource, dense_column, field_column
from mlet.errors import ConfigError, DataError


def rows(source: RawSource) -> pl.DataFrame:
    return pl.concat(list(source.frames()))


def field(source: RawSource, name: str) -> list[object]:
    return rows(source)[field_column(name)].to_list()


def test_criteo_sample(criteo_sample: Path) -> None:
    frame = rows(CriteoSource([criteo_sample]))
    lines = [line.split("\t") for line in criteo_sample.read_text().splitlines()]
    assert len(frame) == len(lines) == 1_000
    assert frame[LABEL].to_list() == [int(cells[0]) for cells in lines]
    for place, cells in enumerate(zip(*lines, strict=True)):
        if 1 <= place <= 13:
            expected = [float(cell) if cell else None for cell in cells]
            assert frame[dense_column(f"I{place}")].to_list() == expected
        elif place > 13:
            expected = [cell or None for cell in cells]
            assert frame[field_column(f"C{place - 13}")].to_list() == expected


CriteoEdit = Callable[[list[str]], list[str]]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda cells: cells[:-1], "line 3: 39 columns where 40 are expected"),
        (lambda cells: ["click", *cells[1:]], "line 3: column 'label' holds 'click', expected"),
        (lambda cells: ["2", *cells[1:]], "line 3: column 'label' holds '2', expected a label"),
        (lambda cells: ["", *cells[1:]], "line 3: column 'label' holds nothing, expected a label"),
        (
            lambda cells: [cells[0], "9" * 30, *cells[2:]],
            "line 3: column 'I1' holds '9{30}', expected a 64-bit integer",
        ),
        (lambda cells: [cells[0], "1.5", *cells[2:]], "line 3: column 'I1' holds '1.5', expected"),
    ],
)
def test_criteo_names_the_line_of_a_bad_row(tmp_path: Path, edit: CriteoEdit, message: str) -> None:
    good = ["0", *["1"] * 13, *["ab"] * 26]
    path = tmp_path / "train.txt"
    path.write_text("".join("\t".join(r) + "\n" for r in (good, good, edit(list(good)), good)))
    with pytest.raises(DataError, match=rf"train.txt, {message}"):
        rows(CriteoSource([path]))


def test_avazu(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    header = ["id", "click", "hour", *AVAZU]
    path.write_text(f"{','.join(header)}\n1,0,14102123,{','.join(AVAZU)}\n")
    source = AvazuSource([path])
    assert rows(source)[TIME].to_list() == [14102123]
    assert field(source, "hour") == ["23"]
    assert field(source, "weekday") == ["2"], "21 October 2014 was a Tuesday"
    assert [field(source, name) for name in AVAZU] == [[name] for name in AVAZU]
    path.write_text(path.read_text().replace("14102123", "14109923"))
    with pytest.raises(DataError, match="line 2: column 'hour' holds '14109923'"):
        rows(source)
    path.write_text("id,click\n1,0\n")
    with pytest.raises(DataError, match="line 1: no column 'hour'"):
        rows(source)


def test_movielens_sample(movielens: Path) -> None:
    frame = rows(MovieLensSource(movielens))
    assert len(frame) == 100_004
    first = frame.row(0, named=True)  # 1,31,2.5,1260759144 and 31,Dangerous Minds (1995),Drama
    moment = dt.datetime.fromtimestamp(1260759144, dt.timezone.utc)
    assert first == {
        LABEL: 0,
        TIME: 1260759144,
        field_column("user"): "1",
        field_column("film"): "31",
        field_column("year"): "1995",
        field_column("hour"): str(moment.hour),
        field_column("weekday"): str(moment.isoweekday()),
        field_column("genres"): ["Drama"],
    }
    assert frame[field_column("genres")].list.len().max() > 3


def test_movielens_dat(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes(
        "1::Café, The (1999)::Comedy|Drama\n2::Untitled::(no genres listed)\n".encode("latin-1")
    )
    (tmp_path / "ratings.dat").write_text("7::1::4::978300760\n7::2::3::978300761\n")
    source = MovieLensSource(tmp_path)
    assert rows(source)[LABEL].to_list() == [1, 0]
    assert field(source, "year") == ["1999", None]
    assert field(source, "genres") == [["Comedy", "Drama"], []]
    (tmp_path / "ratings.dat").write_text("7::1::4::978300760\n7::3::3::978300761\n")
    with pytest.raises(DataError, match=r"ratings\.dat, line 2: film '3' is not in"):
        rows(source)


def test_movielens_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        MovieLensSource(tmp_path / "none")
    with pytest.raises(DataError, match=r"no ratings\.csv or ratings\.dat"):
        MovieLensSource(tmp_path)


def test_libfm(tmp_path: Path) -> None:
    path = tmp_path / "frappe.libfm"
    path.write_text("-1 204:1 4798:1\n1 42:1 1572:1.0\n")
    source = LibFMSource([path])
    assert source.columns.categorical == ("field_1", "field_2")
    assert rows(source)[LABEL].to_list() == [0, 1]
    assert field(source, "field_2") == ["4798", "1572"]


def test_libfm_published_splits_are_themselves_in_any_order(tmp_path: Path) -> None:
    given = {}
    for place, name in enumerate(("test", "train", "valid")):
        given[name] = tmp_path / name
        given[name].write_text(f"1 {place}:1\n")
    frame = rows(LibFMSource([], given))
    found = dict(zip(frame[field_column("field_1")], frame[SPLIT], strict=True))
    assert found == {"0": 2, "1": 0, "2": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 3:1", "line 2: 2 columns where 3 are expected"),
        ("5 3:1 4:1", "line 2: label '5', expected 1, 0 or -1"),
        ("1 3:0.5 4:1", "line 2: feature '3:0.5' of 'field_1', expected 'id:1'"),
        ("1 3:1 x", "line 2: feature 'x' of 'field_2'"),
    ],
)
def test_libfm_names_the_line_of_a_bad_row(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.libfm"
    path.write_text(f"1 1:1 2:1\n{line}\n")
    with pytest.raises(DataError, match=message):
        rows(LibFMSource([path]))


SCHEMA = {
    "label": "click",
    "dense": {"price": "none", "age": "log"},
    "categorical": ["user"],
    "multi_valued": {"tags": "|"},
    "time": "when",
}
CSV = """\
click,price,age,user,tags,when,more
1,2.5,,u1,a|b,2024-01-02T03:04:05,x
0,,7,,,2023-12-31,y
"""


@pytest.mark.parametrize("parquet", [False, True])
def test_table(tmp_path: Path, parquet: bool) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    if parquet:
        frame = pl.read_csv(path).with_columns(
            pl.col("tags").str.split("|").fill_null([]), pl.col("when").str.to_datetime()
        )
        path = tmp_path / "t.parquet"
        frame.write_parquet(path)
    source = TableSource([path], TableSchema.parse(SCHEMA, "test"))
    frame = rows(source)
    assert frame[LABEL].to_list() == [1, 0]
    assert frame[dense_column("price")].to_list() == [2.5, None]
    assert frame[dense_column("age")].to_list() == [None, 7.0]
    assert field(source, "user") == ["u1", None]
    assert field(source, "tags") == [["a", "b"], []]
    hours = (frame[TIME][0] - frame[TIME][1]) / 3.6e9
    assert hours == pytest.approx(51.068, abs=1e-3)
    assert source.default_split == "time"


def test_table_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    changed = {**SCHEMA, "categorical": ["visitor"]}
    with pytest.raises(DataError, match=r"no column 'visitor'; the file has click, price"):
        rows(TableSource([path], TableSchema.parse(changed, "test")))
    with pytest.raises(ConfigError, match="unknown key 'categorial'; did you mean 'categorical'"):
        TableSchema.parse({"label": "x", "categorial": []}, "test")
    with pytest.raises(ConfigError, match="'label' is missing"):
        TableSchema.parse({"categorical": ["a"]}, "test")
    with pytest.raises(ConfigError, match="column 'user' is given two roles"):
        TableSource([path], TableSchema.parse({**SCHEMA, "multi_valued": {"user": ","}}, "test"))
    with pytest.raises(ConfigError, match="at least one categorical"):
        TableSource([path], TableSchema.parse({"label": "click"}, "test"))
    path.write_text(CSV.replace("2.5", "nan"))
    with pytest.raises(DataError, match="line 2: column 'price' holds 'nan', expected a finite"):
        rows(TableSource([path], TableSchema.parse(SCHEMA, "test")))
    path.write_text(CSV.replace("2023-12-31", "soon"))
    with pytest.raises(DataError, match="line 3: column 'when' holds 'soon', expected a date"):
        rows(TableSource([path], TableSchema.parse(SCHEMA, "test")))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"bad\.parquet: damaged \(.*fetch it again"):
        rows(TableSource([tmp_path / "bad.parquet"], TableSchema.parse(SCHEMA, "test")))


def parquet(tmp_path: Path, schema: dict[str, object], **columns: object) -> pl.DataFrame:
    """What is read of a Parquet file with these columns, a label and a field beside them."""
    path = tmp_path / "t.parquet"
    size = len(next(iter(columns.values())))
    frame = {"click": [0, 1] * (size // 2), "u": ["a"] * size, **columns}
    pl.DataFrame(frame).write_parquet(path)
    schema = {"label": "click", "categorical": ["u"], **schema}
    return rows(TableSource([path], TableSchema.parse(schema, "test")))


@pytest.mark.parametrize(
    ("schema", "values", "message"),
    [
        ({"time": "c"}, [dt.timedelta(hours=1)] * 2, "column 'c' of type Duration"),
        ({"time": "c"}, [dt.time(1)] * 2, "'c' holds '01:00:00', expected a 64-bit integer"),
        ({"time": "c"}, [dt.datetime(2024, 1, 1), None], "line 2: column 'c' holds nothing"),
        ({"time": "c"}, [dt.date(2024, 1, 1), None], "line 2: column 'c' holds nothing"),
        ({"time": "c"}, [1, None], "line 2: column 'c' holds nothing"),
        ({"categorical": ["c"]}, [["x"]] * 2, "name it under multi_valued"),
        ({"dense": ["c"]}, [[1.0]] * 2, r"column 'c' of type List\(Float64\)"),
        ({"label": "c"}, [[1]] * 2, r"column 'c' of type List\(Int64\)"),
        ({"multi_valued": {"c": "|"}}, [[[1]]] * 2, r"holds no lists of numbers or texts"),
        ({"multi_valued": {"c": "|"}}, [{"a": 1}] * 2, r"holds no lists of numbers or texts"),
        ({"categorical": ["c"]}, [{"a": 1}] * 2, r"column 'c' of type Struct"),
        ({"categorical": ["c"]}, [b"\xff\x00"] * 2, "column 'c' of type Binary"),
    ],
)
def test_columns_that_cannot_be_read_are_named(
    tmp_path: Path, schema: dict[str, object], values: list[object], message: str
) -> None:
    with pytest.raises(DataError, match=rf"t\.parquet.*{message}"):
        parquet(tmp_path, schema, c=values)


def test_a_category_is_the_same_whatever_type_it_is_kept_in(tmp_path: Path) -> None:
    found = {}
    for values in ([7, 8], [7.0, 8.0], ["7", "8"], pl.Series([7, 8], dtype=pl.UInt8)):
        read = parquet(tmp_path, {"categorical": ["c"]}, c=values)
        found[tuple(read[field_column("c")])] = True
    assert list(found) == [("7", "8")]
    read = parquet(tmp_path, {"categorical": ["c"]}, c=[7.0, None, float("nan"), 7.5])
    assert read[field_column("c")].to_list() == ["7", None, None, "7.5"]


def test_bags_are_the_same_whatever_list_they_are_kept_in(tmp_path: Path) -> None:
    schema = {"multi_valued": {"c": "|"}}
    for values in (
        [[1, 2], [3]], [[1.0, 2.0], [3.0, None]], [["1", "2"], ["3", None]], ["1|2", "3|"],
    ):  # fmt: skip
        read = parquet(tmp_path, schema, c=values)
        assert read[field_column("c")].to_list() == [["1", "2"], ["3"]]
    fixed = pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2))
    read = parquet(tmp_path, schema, c=fixed)
    assert read[field_column("c")].to_list() == [["1", "2"], ["3", "4"]]
    assert parquet(tmp_path, schema, c=[None, ["1"]])[field_column("c")].to_list() == [[], ["1"]]


def test_labels_may_be_booleans(tmp_path: Path) -> None:
    assert parquet(tmp_path, {"label": "c"}, c=[True, False])[LABEL].to_list() == [1, 0]
    path = tmp_path / "t.csv"
    path.write_text("click,u\nTrue,a\nfalse,b\n")
    schema = TableSchema.parse({"label": "click", "categorical": ["u"]}, "test")
    assert rows(TableSource([path], schema))[LABEL].to_list() == [1, 0]


def test_times_of_several_files_are_of_one_kind(tmp_path: Path) -> None:
    for name, stamp in (("a", "2024-01-01"), ("b", "2024-01-02T10:00:00"), ("c", "1704067200")):
        (tmp_path / f"{name}.csv").write_text(f"click,u,ts\n1,x,{stamp}\n")
    schema = TableSchema.parse({"label": "click", "categorical": ["u"], "time": "ts"}, "test")
    assert len(rows(TableSource([tmp_path / "a.csv", tmp_path / "b.csv"], schema))) == 2
    with pytest.raises(DataError, match=r"c\.csv, line 2: column 'ts' holds integers, .* dates"):
        rows(TableSource([tmp_path / "a.csv", tmp_path / "c.csv"], schema))


def test_brackets_and_stars_in_names_are_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "data [v1]"
    folder.mkdir()
    schema = TableSchema.parse({"label": "click", "categorical": ["t", "t[0]", "t*"]}, "test")
    for name, value in (("clicks1", "WRONG"), ("clicks[1]", "right"), ("day2", "WRONG")):
        frame = {"click": [0, 1] * 50, "t": [value] * 100}
        frame |= {"t[0]": [f"{value} 0"] * 100, "t*": [f"{value} *"] * 100}
        pl.DataFrame(frame).write_parquet(folder / f"{name}.parquet")
    (folder / "clicks[1].parquet").rename(folder / "[cd]*[1].parquet")
    source = TableSource([folder / "[cd]*[1].parquet"], schema)
    prepare(source, folder / "o[u]t", split=SplitRule(by="order", valid=0.25, test=0.25))
    data = PreparedDataset(folder / "o[u]t")
    assert sum(split.rows for split in data.schema.splits.values()) == 100
    for name, value in (("t", "right"), ("t[0]", "right 0"), ("t*", "right *")):
        assert data.vocabulary(name)["category"].to_list() == [None, value]


@pytest.mark.parametrize("size", [1, 9, 10, 11, 20, 21])
def test_parquet_is_read_in_pieces_to_the_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(table, "_PARQUET_ROWS", 10)
    path = tmp_path / "t.parquet"
    values = [str(row) for row in range(size)]
    pl.DataFrame({"click": [1] * size, "c": values}).write_parquet(path)
    schema = TableSchema.parse({"label": "click", "categorical": ["c"]}, "test")
    frames = list(TableSource([path], schema).frames())
    assert pl.concat(frames)[field_column("c")].to_list() == values
    assert len(frames) == -(-size // 10)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_that_are_split_already(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    parts = [0, 1, 2, 2, 1, 0, 0, 1, 2]
    frame = pl.DataFrame(
        {"click": [0, 1, 0, 1, 0, 1, 0, 1, 0], "u": [f"u{row}" for row in range(9)], "part": parts}
    )
    frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    schema = {"label": "click", "categorical": ["u"], "split": {"column": "part"}}
    source = TableSource([path], TableSchema.parse(schema, "test"))
    assert source.default_split == "given"
    assert rows(source)[SPLIT].to_list() == parts
    prepared = prepare(source, tmp_path / "d")
    assert prepared.split_by == "given"
    assert {name: split.rows for name, split in prepared.splits.items()} == {
        "train": 3, "valid": 3, "test": 3,
    }  # fmt: skip
    assert set(PreparedDataset(tmp_path / "d").vocabulary("u")["category"][1:]) == {
        "u0", "u5", "u6",
    }  # fmt: skip
    assert prepare(source, tmp_path / "e", split=SplitRule("order", 0.3, 0.3)).split_by == "order"
    named = {"column": "part", "train": ["2"], "valid": [0], "test": ["1"]}
    source = TableSource([path], TableSchema.parse({**schema, "split": named}, "test"))
    assert rows(source)[SPLIT].to_list() == [1, 2, 0, 0, 2, 1, 1, 2, 0]


def test_splits_by_name_and_those_that_are_none(tmp_path: Path) -> None:
    schema = {"label": "click", "categorical": ["u"], "split": {"column": "part"}}
    path = tmp_path / "t.csv"
    path.write_text("click,u,part\n0,a,Train\n1,b, validation\n1,b,TEST\n")
    source = TableSource([path], TableSchema.parse(schema, "test"))
    assert rows(source)[SPLIT].to_list() == [0, 1, 2]
    for bad in ("holdout", ""):
        path.write_text(f"click,u,part\n0,a,train\n1,b,{bad}\n")
        with pytest.raises(DataError, match=r"line 3: column 'part' holds .*expected one of 0"):
            rows(source)
    path.write_text("click,u,part\n0,a,train\n1,b,test\n")
    with pytest.raises(DataError, match="the valid split would be empty: no row is given to it"):
        prepare(source, tmp_path / "d")
    with pytest.raises(ConfigError, match="'1' is listed for two splits"):
        TableSchema.parse({**schema, "split": {"column": "part", "train": ["0", 1]}}, "test")
    with pytest.raises(ConfigError, match="column 'part' is given two roles"):
        TableSource([path], TableSchema.parse({**schema, "categorical": ["part"]}, "test"))


@pytest.mark.parametrize("date", ["01-02-2024", "2024/01/02", "02 Jan 2024", "20240102-03"])
def test_dates_that_are_not_iso_are_not_guessed(tmp_path: Path, date: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"click,u,ts\n0,a,{date}\n1,b,{date}\n")
    schema = TableSchema.parse({"label": "click", "categorical": ["u"], "time": "ts"}, "test")
    with pytest.raises(
        DataError, match=r"line 2: column 'ts' holds .*expected a (date in ISO|64-bit)"
    ):
        rows(TableSource([path], schema))


@pytest.mark.parametrize("separator", ["", ",,", "\u00a7", '"', "\n"])
def test_a_separator_is_one_ascii_character(tmp_path: Path, separator: str) -> None:
    schema = {"label": "click", "categorical": ["u"], "separator": separator}
    with pytest.raises(ConfigError, match="'separator' must be one ASCII character"):
        TableSource([tmp_path / "t.csv"], TableSchema.parse(schema, "test"))
    with pytest.raises(ConfigError, match="'__line__' is a name that mlet uses itself"):
        TableSource(
            [tmp_path / "t.csv"],
            TableSchema.parse({"label": "click", "categorical": ["__line__"]}, "test"),
        )


def test_empty_texts_of_a_list_are_no_categories_and_structures_none_at_all(tmp_path: Path) -> None:
    schema = {"multi_valued": {"tags": "|"}}
    frame = parquet(tmp_path, schema, tags=[["a", "", "b"], [""]])
    assert frame[field_column("tags")].to_list() == [["a", "b"], []]
    with pytest.raises(DataError, match="holds no lists of numbers or texts"):
        parquet(tmp_path, schema, tags=[[{"x": 1}], [{"x": 2}]])
    with pytest.raises(DataError, match=r"holds no numbers or texts$"):
        parquet(tmp_path, {"categorical": ["s"]}, s=[{"x": 1}, {"x": 2}])


def test_old_line_ends_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"click,u\r0,a\r1,b\r")
    schema = TableSchema.parse({"label": "click", "categorical": ["u"]}, "test")
    with pytest.raises(DataError, match=r"line 1: lines end with .*convert them"):
        rows(TableSource([path], schema))


@pytest.mark.parametrize("kind", ["fifo", "folder", "bytes"])
def test_what_is_no_parquet_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.parquet"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"PAR1" + bytes(200) + b"PAR1")
    schema = TableSchema.parse({"label": "click", "categorical": ["u"]}, "test")
    with pytest.raises(DataError, match=r"t\.parquet: .*fetch it again"):
        rows(TableSource([path], schema))
