"""Which raw files are meant: names, folders, patterns, standard input."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from mlet.data.raw_bytes import STDIN
from mlet.errors import ConfigError, DataError


def raw_files(named: Sequence[Path], *, folders: bool) -> list[Path]:
    """The files that are meant, in the order in which they are named.

    Args:
        named: files; patterns, for the files they match in the order of their names; ``-`` for
            standard input.
        folders: whether a folder stands for the files below it in the order of their names, those
            left out that begin with a dot or an underscore; otherwise it stays what it is.

    Raises:
        DataError: one is not there, or a folder is empty.
        ConfigError: standard input is named more than once.
    """
    found: list[Path] = []
    for path in named:
        if str(path) == "-":
            found.append(STDIN)
        elif path.exists():
            found += _below(path) if folders and path.is_dir() else [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if not matches:
                raise DataError(f"{path}: no such file, and no file matches it")
            for match in matches:
                found += _below(match) if folders and match.is_dir() else [match]
    if found.count(STDIN) > 1:
        raise ConfigError("standard input (-) can be read but once")
    return found


def _below(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"{folder}: no files in this folder; name the folder that holds the rows")
    return files
