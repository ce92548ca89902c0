"""Whatever is wrong with a file is one line of error that names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlet.errors import DataError, RunError
from mlet.reading import (
    read_sealed,
    read_sealed_lines,
    reading,
    write_sealed,
    write_sealed_lines,
)


class PanicException(BaseException):
    """As Polars raises it."""


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (KeyError("lost"), r"file: damaged \('lost'\); mend it"),
        (ValueError("first\nsecond"), r"file: damaged \(first\); mend it"),
        (ValueError(), r"file: damaged \(ValueError\); mend it"),
        (PermissionError(13, "Permission denied"), r"file: cannot be read \(Permission denied\)"),
        (MemoryError(), "file: damaged, or larger than memory"),
        (PanicException("whatever"), "file: damaged; mend it"),
    ],
)
def test_failures_of_parsers_are_errors_of_ours(
    tmp_path: Path, failure: BaseException, message: str
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(DataError, match=message), reading(path, DataError, "mend it"):
        raise failure


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with reading(str(tmp_path / "file"), DataError, "mend it"):  # type: ignore[arg-type]
        pass


def test_what_is_no_problem_of_the_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    for failure in (RunError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), reading(path, DataError, "mend it"):
            raise failure


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "missing; mend it"),
        (lambda path: path.mkdir(), "is a folder; mend it"),
        (lambda path: os.mkfifo(path), "is no regular file; mend it"),
        (lambda path: path.symlink_to("nowhere"), "missing; mend it"),
        (lambda path: path.symlink_to(path.name), "cannot be read"),
    ],
)
def test_what_is_no_file_is_not_opened(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(DataError, match=message), reading(path, DataError, "mend it"):
        path.read_text()


def test_a_seal_is_of_the_values(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    values = {"a": 1.5, "b": [None, "ü"], "c": {"d": float("nan")}}
    write_sealed(path, values)
    found = read_sealed(path, DataError, "mend it")
    assert str(found) == str(values)
    write_sealed(path, {**found, "seal": 3})
    assert str(read_sealed(path, DataError, "mend it")) == str(values)
    text = path.read_text()
    for old, new in (("1.5", "1.6"), ('"a"', '"e"'), ("[", "{"), ("null", "true")):
        path.write_text(text.replace(old, new))
        with pytest.raises(DataError, match=r"sealed\.json: damaged"):
            read_sealed(path, DataError, "mend it")
    path.write_text('{"a": 1}')  # of mlet 0.1
    assert read_sealed(path, DataError, "mend it") == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(DataError, match="no JSON object"):
        read_sealed(path, DataError, "mend it")


def test_every_line_is_sealed_with_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "sealed.jsonl"
    records = [{"step": step, "value": step / 3} for step in range(3)]
    write_sealed_lines(path, records)
    assert read_sealed_lines(path, DataError, "mend it") == records
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (
        [lines[0].replace(" 0", " 7", 1), *lines[1:]],
        [lines[0], lines[1].replace("0.33", "0.34"), lines[2]],
        [lines[1], lines[0], lines[2]],
        [lines[0], lines[2]],
        lines[1:],
        [lines[0], lines[1].replace("seal", "seam"), lines[2]],
        [lines[0], "[]\n"],
        [*lines, lines[2]],
        [*lines, "{"],
        [],
    ):
        path.write_text("".join(damaged))
        with pytest.raises(DataError, match=r"sealed\.jsonl: .*damaged.*mend it"):
            read_sealed_lines(path, DataError, "mend it")
    path.write_text('{"a": 1}\n{"a": 2}\n')  # of mlet 0.1
    assert read_sealed_lines(path, DataError, "mend it") == [{"a": 1}, {"a": 2}]
