"""Scores as a file that appears whole or not at all, written a frame at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import polars as pl

from mlet.atomic import atomic_path
from mlet.data.parquet import write_parquet
from mlet.errors import ConfigError, RunError

#: How files of scores may be named.
SUFFIXES = (".parquet", ".csv")


class ScoreWriter(Protocol):
    """Takes the rows of a file in their order."""

    def append(self, frame: pl.DataFrame) -> None:
        """Write more rows, with the columns of the first."""


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before anything is scored.

    Raises:
        ConfigError: its name says no format.
        RunError: it exists and ``overwrite`` is false, or it is a folder.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out}: name the file of scores {' or '.join(SUFFIXES)}")
    if out.is_dir():
        raise RunError(f"{out}: is a folder; name a file")
    if out.exists() and not overwrite:
        raise RunError(f"{out} already exists: pass --overwrite or choose another file")


@contextmanager
def score_file(out: Path) -> Iterator[ScoreWriter]:
    """A writer of Parquet or CSV, as the name says.

    Raises:
        WriteError: the file cannot be written.
    """
    with atomic_path(out, failures=(pl.exceptions.ComputeError,)) as temporary:
        if out.suffix == ".csv":
            yield _CsvWriter(temporary)
            return
        # So named, it is removed by whoever writes here after this process was killed.
        folder = temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.parts.tmp")
        folder.mkdir()
        try:
            writer = _ParquetWriter(folder)
            yield writer
            writer.join(temporary)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _CsvWriter:
    """Rows of text behind a line with the columns' names."""

    def __init__(self, path: Path) -> None:
        self._path, self._begun = path, False

    def append(self, frame: pl.DataFrame) -> None:
        """See `ScoreWriter`."""
        with self._path.open("ab") as file:
            frame.write_csv(file, include_header=not self._begun)
        self._begun = True


class _ParquetWriter:
    """Parts on disk, which are then made one file, so that memory holds one of them at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: list[Path] = []

    def append(self, frame: pl.DataFrame) -> None:
        """See `ScoreWriter`."""
        part = self._folder / f"{len(self._parts):09d}.parquet"
        write_parquet(frame, part)
        self._parts.append(part)

    def join(self, path: Path) -> None:
        """Make them one file."""
        if len(self._parts) == 1:
            self._parts[0].replace(path)
        else:
            pl.scan_parquet(self._parts, glob=False).sink_parquet(path)
