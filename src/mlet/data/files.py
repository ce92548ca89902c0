"""Which files raw data is in: those named, in folders, or matching a pattern; and of what kind."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from mlet.data.compressed import STDIN, beginning
from mlet.data.remote import Url, as_url, find, is_pattern
from mlet.errors import DataError

FileKind = Literal["parquet", "jsonl", "text"]

_HIVE_MISSING = "__HIVE_DEFAULT_PARTITION__"
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class RawFile:
    """One file of raw data.

    Attributes:
        path: where it is.
        partitions: columns that its folders hold, as of ``day=2024-05-01``; None is missing.
        found: whether it was found in a folder or by a pattern, and not named itself.
    """

    path: Path
    partitions: dict[str, str | None] = field(default_factory=dict)
    found: bool = False


def find_files(paths: Sequence[Path]) -> list[RawFile]:
    """The files of some paths, in their order: files, folders with all below them, or patterns; of
    URLs, too (`mlet.data.remote`).

    In folders, names that begin with ``.`` or ``_`` are left out, as what Spark and others note
    beside their files; the rest are in the order of their names. A path that exists is itself,
    whatever stars and brackets are in it.

    Raises:
        DataError: a folder holds no file, a pattern matches none, or a file comes twice.
    """
    files: list[RawFile] = []
    for given in paths:
        path = Path(given)
        if (url := as_url(path)) is not None:
            files += _remote_files(url)
        elif path.is_dir():
            inside = sorted(_inside(path))
            if not inside:
                raise DataError(
                    f"{path}: the folder holds no files (but what begins with '.' or '_'); name "
                    f"another, or fetch it again"
                )
            files += [RawFile(file, _partitions(file), found=True) for file in inside]
        elif not path.exists() and glob.has_magic(str(path)):
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            matches = [match for match in matches if not _is_hidden(match.name)]
            if not matches:
                raise DataError(f"{path}: no file matches the pattern")
            inside = [
                file
                for match in matches
                for file in (sorted(_inside(match)) if match.is_dir() else [match])
            ]
            files += [
                RawFile(file, _partitions(file), found=True) for file in dict.fromkeys(inside)
            ]
        else:
            files.append(RawFile(path, _partitions(path)))
    seen: set[str] = set()
    for file in files:
        local = str(file.path).removeprefix("file://")
        if (whole := os.path.realpath(local)) in seen:  # takes links to themselves, too
            raise DataError(
                f"{file.path}: named twice, alone, by a folder or by a pattern, so that its rows "
                f"would count twice; name it once"
            )
        seen.add(whole)
    return files


def _remote_files(url: Url) -> list[RawFile]:
    """The files of a URL, as of a path."""
    found = find(url)
    if found is None:
        return [RawFile(url, _partitions(url))]
    start = () if is_pattern(url) else url.parts
    inside = [
        file
        for file in found
        if not any(
            _is_hidden(name) for name in (file.parts[len(start) :] if start else [file.name])
        )
    ]
    if not inside:
        pattern = is_pattern(url)
        raise DataError(
            f"{url}: no file matches the pattern"
            if pattern
            else f"{url}: the folder holds no files (but what begins with '.' or '_', or is empty)"
        )
    return [RawFile(file, _partitions(file), found=True) for file in inside]


def _inside(folder: Path) -> Iterator[Path]:
    """The files below a folder."""
    for path in folder.iterdir():
        if _is_hidden(path.name):
            continue
        if path.is_dir():
            yield from _inside(path)
        else:
            yield path


def _is_hidden(name: str) -> bool:
    """Whether a name is that of a note, as ``_SUCCESS`` and ``.part-0.crc``; not ``_day=1``."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _partitions(path: Path) -> dict[str, str | None]:
    """The columns that are in the names of a file's folders, as Hive and Spark write them."""
    found: dict[str, str | None] = {}
    for part in path.parent.parts:
        name, equals, value = part.partition("=")
        if equals and name:
            found[unquote(name)] = None if value == _HIVE_MISSING else unquote(value)
    return found


def kind_of_file(path: Path) -> FileKind:
    """What a file is, by its first bytes where they tell, else by its name.

    Raises:
        DataError: it is missing or unreadable, or one JSON array.
    """
    if path.suffix == ".parquet":
        return "parquet"
    if (
        path != STDIN and as_url(path) is None and not path.is_file()
    ):  # from a pipe, what is read is gone
        return "text"
    first = beginning(path).removeprefix(b"\xef\xbb\xbf").lstrip()
    if first.startswith(_PARQUET_MAGIC):
        return "parquet"
    names = {suffix.lower() for suffix in path.suffixes}
    if first.startswith(b"[") and ".json" in names:
        raise DataError(
            f"{path}: one JSON array; write an object a line, as jq -c '.[]' {path.name} does"
        )
    jsonl = first.startswith(b"{") or names & {".jsonl", ".ndjson"}
    return "jsonl" if jsonl else "text"
