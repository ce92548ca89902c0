"""Rows of every format without their labels, and what is wrong with raw rows in one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from click_rows import SCHEMA, Trained
from test_full_disk import limited

from mlet.data.readers import AvazuSource, CriteoSource, LibFMSource, MovieLensSource
from mlet.data.readers.avazu import CATEGORICAL as AVAZU
from mlet.data.readers.registry import open_raw
from mlet.data.schema import RawFormat
from mlet.data.source import LABEL, RawSource, RowSource, rows_of
from mlet.errors import ConfigError, DataError, MletError, RunError
from mlet.scoring import score_files

Edit = Callable[[str], str]


def features(source: RawSource, keep: list[str] | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    parts = list(rows_of(source, keep or []))
    return pl.concat([one.features for one in parts]), pl.concat([one.kept for one in parts])


def labelled(source: RawSource) -> pl.DataFrame:
    frame = pl.concat(list(source.frames()))
    return frame.select(name for name in frame.columns if ":" in name)


def test_criteo(criteo_sample: Path, tmp_path: Path) -> None:
    with_labels = CriteoSource([criteo_sample])
    lines = criteo_sample.read_text().splitlines()
    (tmp_path / "rows.txt").write_text("\n".join(line.split("\t", 1)[1] for line in lines))
    for source in (with_labels, CriteoSource([tmp_path / "rows.txt"])):
        found, kept = features(source, ["C1", "I2"])
        assert found.equals(labelled(with_labels))
        assert kept["C1"].to_list() == [line.split("\t")[14] or None for line in lines]
    (tmp_path / "rows.txt").write_text("\n".join(line.split("\t", 2)[2] for line in lines))
    with pytest.raises(DataError, match="line 1: 38 columns where 40 are expected"):
        features(CriteoSource([tmp_path / "rows.txt"]))


def test_avazu(tmp_path: Path) -> None:
    rows = [["1", "0", "14102123", *AVAZU], ["2", "1", "14102200", *AVAZU]]
    header = ["id", "click", "hour", *AVAZU]
    for name, columns in (("train.csv", slice(None)), ("rows.csv", slice(2, None))):
        lines = [",".join(cells[columns]) for cells in (header, *rows)]
        (tmp_path / name).write_text("\n".join(lines))
    expected = labelled(AvazuSource([tmp_path / "train.csv"]))
    found, kept = features(AvazuSource([tmp_path / "rows.csv"]), ["hour"])
    assert found.equals(expected)
    assert kept["hour"].to_list() == ["14102123", "14102200"]


def test_libfm(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("1 3:1 4:1\n-1 5:1 6:1\n")
    (tmp_path / "rows").write_text("3:1 4:1\n5:1 6:1\n")
    expected = labelled(LibFMSource([tmp_path / "train"]))
    for name in ("train", "rows"):
        assert features(LibFMSource([tmp_path / name]))[0].equals(expected)
    with pytest.raises(DataError, match="line 1: 2 columns where 3 are expected"):
        labelled(LibFMSource([tmp_path / "rows"]))


def test_movielens_dat(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_text("1::One (1999)::Comedy|Drama\n2::Two::Drama\n")
    (tmp_path / "ratings.dat").write_text("7::1::4::978300760\n7::2::3::978300761\n")
    expected = labelled(MovieLensSource(tmp_path))
    (tmp_path / "ratings.dat").write_text("7::1::978300760\n7::2::978300761\n")
    assert features(MovieLensSource(tmp_path))[0].equals(expected)


def test_a_reader_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows need labels, since it knows no rows without; a model remembers its name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "made_up_rows.py").write_text(
        "import polars as pl\n"
        "from mlet.data.source import RawColumns\n"
        "class Reader:\n"
        "    description, default_split = 'mine', 'random'\n"
        "    columns = RawColumns(dense={}, categorical=('u',))\n"
        "    def __init__(self, files): pass\n"
        "    def frames(self):\n"
        "        label = pl.Series([0, 1], dtype=pl.UInt8)\n"
        "        yield pl.DataFrame({'label': label, 'field:u': ['a', 'b']})\n"
    )
    source = open_raw("made_up_rows:Reader", [tmp_path])
    assert isinstance(source, RowSource)
    assert source.format == RawFormat(name="made_up_rows:Reader")
    found, kept = features(source, [LABEL])
    assert found["field:u"].to_list() == ["a", "b"]
    assert kept["label"].to_list() == [0, 1]
    with pytest.raises(DataError, match="mine: no column 'x' to keep; the file has label, field:u"):
        features(source, ["x"])


def row(edit: Edit) -> Edit:
    """Changes the second row of data."""

    def change(text: str) -> str:
        lines = text.splitlines()
        lines[2] = edit(lines[2])
        return "\n".join(lines) + "\n"

    return change


def cell(place: int, value: str) -> Edit:
    def change(line: str) -> str:
        cells = line.split(",")
        cells[place] = value
        return ",".join(cells)

    return row(change)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("user", "visitor"), "rows.csv: no column 'user'; the file has "),
        (lambda text: "", "rows.csv: the file is empty"),
        (lambda text: text.split("\n")[0] + "\n", r"rows.csv: no rows to score; is it the right f"),
        (cell(2, ""), "rows.csv, line 3: dense feature 'price' is missing or NaN, which it never "),
        (cell(2, "nan"), "rows.csv, line 3: column 'price' holds 'nan', expected a finite number"),
        (cell(2, "u7"), "rows.csv, line 3: column 'price' holds 'u7', expected a finite number"),
        (row(lambda line: line + ",1"), "rows.csv, line 3: 8 columns where 7 are expected"),
        (lambda text: text.replace("tags", "x,tags", 1), "line 2: 7 columns where 8 are expected"),
    ],
)
def test_bad_rows(trained: Trained, tmp_path: Path, edit: Edit, message: str) -> None:
    file, out = tmp_path / "rows.csv", tmp_path / "scores.parquet"
    file.write_text(edit(trained.rows.write_csv()))
    with pytest.raises(DataError, match=message) as caught:
        score_files(trained.run, [file], out)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file], "nothing is left behind"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.concat_list("user").alias("user"), r"rows.parquet: column 'user' of type List\(Str"),
        (pl.struct("user").alias("user"), "rows.parquet: column 'user' of type Struct"),
        (pl.col("price").cast(pl.String) + "x", "rows.parquet, line 1: column 'price' holds"),
        (pl.lit(float("nan")).alias("price"), "line 1: dense feature 'price' is missing or NaN"),
        (pl.lit(1e300).alias("price"), "'price' has values too large for float32"),
    ],
)
def test_bad_columns(trained: Trained, tmp_path: Path, column: pl.Expr, message: str) -> None:
    trained.rows.with_columns(column).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=message):
        score_files(trained.run, [tmp_path / "rows.parquet"], tmp_path / "scores.parquet")


def test_damaged_files(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    trained.rows.write_parquet(tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.parquet").write_bytes(content[:-30])
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(trained.rows.write_csv().encode())[:-50])
    for name, message in (("rows.parquet", "damaged"), ("rows.csv.gz", "is cut short")):
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            score_files(trained.run, [tmp_path / name], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ConfigError, {"out": "scores.txt"}, r"scores\.txt: name the file of scores \.parquet or"),
        (RunError, {"out": "there.csv"}, r"there\.csv already exists: pass --overwrite or choose"),
        (ConfigError, {"out": "there.csv", "overwrite": True}, "is among the files to be scored"),
        (DataError, {"files": ["none.csv"]}, r"none\.csv: no such file"),
        (DataError, {"files": ["*.none"]}, "no file matches the pattern"),
        (DataError, {"files": ["empty"]}, "empty: the folder holds no files"),
        (ConfigError, {"files": ["-", "-"]}, "can be read but once"),
        (DataError, {"keep": ["shoe"]}, "no column 'shoe' to keep; the file has request, click"),
        (ConfigError, {"keep": ["user", "user"]}, "'user': there would be two columns of that na"),
        (ConfigError, {"keep": ["score"]}, "'score': there would be two columns of that name"),
        (ConfigError, {"format": RawFormat(name="crito")}, "did you mean 'criteo'"),
        (DataError, {"format": RawFormat(name="avazu")}, "no column 'hour'; expected the header"),
    ],
)
def test_bad_questions(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[MletError],
    arguments: dict[str, object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    trained.rows.write_csv(tmp_path / "there.csv")
    (tmp_path / "empty").mkdir()
    asked = {"files": ["there.csv"], "out": "scores.parquet", **arguments}
    files = [Path(file) for file in asked.pop("files")]
    with pytest.raises(error, match=message) as caught:
        score_files(trained.run, files, Path(asked.pop("out")), **asked)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "scores.parquet").exists()


def test_rows_of_another_format(trained: Trained, criteo_sample: Path, tmp_path: Path) -> None:
    given = RawFormat(name="criteo")
    with pytest.raises(DataError, match="rows without 'price', which the model was trained on; th"):
        score_files(trained.run, [criteo_sample], tmp_path / "scores.csv", format=given)


def test_kept_columns_that_do_not_fit_one_file(trained: Trained, tmp_path: Path) -> None:
    trained.rows.write_csv(tmp_path / "a.csv")
    trained.rows.with_columns(pl.col("tags").str.split("|")).write_parquet(tmp_path / "b.parquet")
    files = [tmp_path / "a.csv", tmp_path / "b.parquet"]
    with pytest.raises(DataError, match=r"b\.parquet: column 'request' is Int64, in earlier files"):
        score_files(trained.run, files, tmp_path / "scores.parquet", keep=["request"])
    with pytest.raises(DataError, match=r"b\.parquet: column 'tags' .* cannot be kept in CSV; wri"):
        score_files(trained.run, files[1:], tmp_path / "scores.csv", keep=["tags"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_full_disk(trained: Trained, tmp_path: Path, suffix: str) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / f"scores{suffix}"
    trained.rows.write_csv(rows)
    out.write_text("old")
    complaint = limited(3_000, "predict", trained.run, rows, "-o", out, "--overwrite")
    assert f"scores{suffix}: cannot be written (" in complaint
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", out.name]


def test_the_command_says_it_in_one_line(
    trained: Trained, mlet: Callable[..., object], tmp_path: Path
) -> None:
    assert SCHEMA["label"] in trained.rows.columns
    trained.rows.drop("item").write_csv(tmp_path / "rows.csv")
    failed = mlet("predict", trained.run, "rows.csv", "-o", "scores.csv", code=2)
    assert failed.stderr.strip().splitlines()[-1].startswith("error: rows.csv: no column 'item'; ")
    failed = mlet("predict", "nowhere", "rows.csv", "-o", "scores.csv", code=2)
    assert failed.stderr.strip().splitlines()[-1] == "error: nowhere: no such file"
    failed = mlet(
        "predict", trained.run, "rows.csv", "-o", "s.csv", "--format", "avazu", "--schema", "x",
        code=2,
    )  # fmt: skip
    assert "--schema describes a table; leave out --format avazu" in failed.stderr
    trained.rows.write_csv(tmp_path / "rows.csv")
    assert (
        "1,000 rows scored -> s.csv"
        in mlet("predict", trained.run, "rows.csv", "-o", "s.csv").stdout
    )
