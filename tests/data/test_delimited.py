"""Blocks of delimited text: same rows whatever the block size, errors that name the line."""

from __future__ import annotations

import csv
import gzip
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import words

from mlet.data import blocks, parse
from mlet.data.delimited import read_delimited
from mlet.data.source import LINE
from mlet.errors import DataError


def read(path: Path, *, size: int = 1 << 20, quoted: bool = True, **more: object) -> pl.DataFrame:
    options = {"separator": ",", "columns": None, "quoted": quoted, "block_bytes": size} | more
    return pl.concat(list(read_delimited(path, **options)))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_block_size_reads_what_csv_wrote(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.tuples(words, words, words), min_size=1, max_size=12))
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("a", "b", "c"), *rows])
    frame = read(path, size=data.draw(st.integers(1, 60)))
    assert frame.select("a", "b", "c").fill_null("").rows() == rows
    lines, line = [], 2
    for row in rows:
        lines.append(line)
        line += 1 + sum(text.count("\n") for text in row)
    assert frame[LINE].to_list() == lines


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    text = b"a,b\n" + b"".join(b"%d,x\n" % i for i in range(5_000))
    path = tmp_path / f"t.csv{suffix}"
    if suffix == ".zst":  # two frames, as parallel compressors write
        pack = zstandard.ZstdCompressor().compress
        path.write_bytes(pack(text[:7_001]) + pack(text[7_001:]))
    else:
        path.write_bytes(gzip.compress(text) if suffix else text)
    frame = read(path, size=4_096)
    assert frame["a"].to_list() == [str(i) for i in range(5_000)]
    if suffix:
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match="cut short"):
            read(path)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("\ufeffa,b\n1,2\n".encode())
    assert read(path).columns == ["a", "b", LINE]
    path.write_bytes(b'a,b\n5" pipe,2\n')
    assert read(path, quoted=False).rows() == [('5" pipe', "2", 2)]
    path.write_bytes(b"a,b\n1,\xff")
    with pytest.raises(DataError, match="line 2: byte 0xff is not UTF-8 text"):
        read(path)


def test_crlf_and_final_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\r\n1,2\r\n3,\r\n\r\n")
    assert read(path).rows() == [("1", "2", 2), ("3", None, 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv: the file is empty"),
        (b"a,b\n1,2\n1\n", "t.csv, line 3: 1 columns where 2 are expected"),
        (b"a,b\n1,2\n1,2,3\n", "t.csv, line 3: 3 columns where 2 are expected"),
        (b'a,b\n"x\ny",2\n1\n', "t.csv, line 4: 1 columns where 2 are expected"),
        (b"a,b\n1,2\n\n1,2\n", "t.csv, line 3: 1 columns where 2 are expected"),
        (b"a,b\n1,\x002\n", "t.csv, line 2: byte 0x00 is not UTF-8 text"),
        (b"a,b\n1,2\n\xff\xfe,2\n", "t.csv, line 3: byte 0xff is not UTF-8 text"),
        (b'a,b\n"1,2\n', "a quote opened here or later is never closed"),
        (b"a,a\n1,2\n", "line 1: repeated column names: 'a'$"),
        (b"1,1\n1,2\n", "line 1: repeated column names: '1'; put a line with the names"),
    ],
)
@pytest.mark.parametrize("size", [5, 1 << 20])
def test_damage_is_named(tmp_path: Path, content: bytes, message: str, size: int) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path, size=size)


def test_a_binary_file_without_newlines_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"ab\0cd" * 1_000)
    with pytest.raises(DataError, match="line 1: byte 0x00"):
        next(read_delimited(path, ",", None, quoted=True, block_bytes=10))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: no such file"):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match="is a directory"):
        read(tmp_path)
    (tmp_path / "bad.gz").write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=r"not a readable \.gz file"):
        read(tmp_path / "bad.gz")


def test_separators_of_several_characters_and_latin_1(tmp_path: Path) -> None:
    path = tmp_path / "movies.dat"
    path.write_bytes("1::Amélie (2001)::Comedy\n".encode("latin-1"))
    frame = read(
        path, separator="::", columns=["id", "title", "genres"], quoted=False, encoding="latin-1"
    )
    assert frame.row(0) == ("1", "Amélie (2001)", "Comedy", 1)


def table(cell: str, separator: str = ",") -> str:
    lines = [f"1{separator}{cell if row in (2, 3) else 'plain'}{separator}u" for row in range(5)]
    return "\n".join([f"click{separator}title{separator}user", *lines, ""])


@pytest.mark.parametrize(
    "cell",
    [
        '"size 12" tv"',
        '"size 12\\""',
        '12" vinyl',
        '"The" film',
        ' "a b"',
        '"a" ',
        'a"',
        '"a""',
    ],
)
@pytest.mark.parametrize("block_bytes", [7, 1 << 20])
def test_a_stray_quote_merges_no_rows(tmp_path: Path, cell: str, block_bytes: int) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(table(cell))
    with pytest.raises(DataError, match=r"rows\.csv, line [45]: a quote in the middle of a cell"):
        list(read_delimited(path, ",", None, quoted=True, block_bytes=block_bytes))
    frames = read_delimited(path, ",", None, quoted=False, block_bytes=block_bytes)
    assert pl.concat(list(frames))["title"].to_list() == ["plain"] * 2 + [cell] * 2 + ["plain"]


def test_names_of_columns_may_be_quoted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('click,"title, all","the ""user"""\n1,a,b\n')
    assert read(path).columns == ["click", "title, all", 'the "user"', LINE]


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("filling", [b"a", b'"', b",", b" ", b"\r"])
def test_a_record_without_end_is_refused_early(
    tmp_path: Path, filling: bytes, quoted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_RECORD_BYTES", 10_000)
    path = tmp_path / "bomb.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'click,title,user\n1,a,b\n1,"' if quoted else b"click,title,user\n1,a,b\n1,a")
        for _ in range(100):
            file.write(filling * 100_000)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb\.csv\.gz, line [34]: "):
        list(read_delimited(path, ",", None, quoted=quoted, block_bytes=1_000))
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_a_named_pipe_is_refused_and_the_shells_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "t.csv"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"t\.csv: is a named pipe"):
        read(pipe)
    reader, writer = os.pipe()
    os.write(writer, b"a,b\n1,2\n")
    os.close(writer)
    try:
        assert read(Path(f"/dev/fd/{reader}")).rows() == [("1", "2", 2)]
    finally:
        os.close(reader)


def test_what_a_small_zstd_file_unpacks_to_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.csv.zst"
    compressor = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        file.write(compressor.compress(b"a,b\n"))
        for _ in range(100):
            file.write(compressor.compress(b"1" * 10_000_000))
        file.write(compressor.flush())
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 2: "):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 400_000_000
    finally:
        tracemalloc.stop()


#: What is an integer to nobody, to some, and to all.
INTEGERS = (
    *("5", "-5", "+5", " 5", "5 ", "5.0", "1e3", "1_000", "0x5", "", "-0", "007", "nan", "٣", "-"),
    *("--5", "9223372036854775807", "9223372036854775808", "-9223372036854775808"),
)


@pytest.mark.parametrize("text", INTEGERS)
def test_integers_are_read_as_they_are_parsed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text(f"a\t1\nb\t{text}\n")

    def read(types: dict[str, type[pl.DataType]] | None) -> object:
        (frame,) = read_delimited(path, "\t", ("name", "n"), quoted=False, types=types)
        try:
            return parse.integers(frame, "n", path).to_list()
        except DataError as error:
            return str(error)

    assert read({"n": pl.Int64}) == read(None)


@pytest.mark.parametrize("rows", ["a\tb\tc\na\n", "a\na\tb\tc\n", "a\tb\n\na\tb\tc\n"])
def test_as_many_separators_in_all_are_not_as_many_in_each(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text(rows)
    with pytest.raises(DataError, match=r"line [12]: \d columns where 2 are expected"):
        list(read_delimited(path, "\t", ("x", "y"), quoted=False))


def test_preparing_starts_without_torch() -> None:
    script = "import sys, mlet.cli.prepare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
