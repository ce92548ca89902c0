"""The typed rows of a source, put on disk once and read again a column at a time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

import polars as pl

from mlet.data.compressed import STDIN
from mlet.data.parquet import read_parquet, write_parquet
from mlet.data.source import Notes, PartedSource, RawPart, RawSource, check_frame
from mlet.data.workers import WorkerDied, Workers
from mlet.errors import ConfigError, DataError, RunError

#: Called with what is being done and how many of how many steps (None: unknown) are behind.
Report: TypeAlias = Callable[[str, int, int | None], None]

_CHUNK_ROWS = 2_000_000


@dataclass(frozen=True)
class Chunk:
    """A few million rows, which are worked on together.

    Attributes:
        files: that they are in.
        start: the first row's number among all.
        rows: how many.
    """

    files: tuple[Path, ...]
    start: int
    rows: int

    @property
    def slice(self) -> slice:
        """Which rows they are."""
        return slice(self.start, self.start + self.rows)

    def read(self, *columns: str) -> pl.DataFrame:
        """The chosen columns."""
        return pl.concat([read_parquet(file, list(columns)) for file in self.files])


class StagedFile(NamedTuple):
    """Rows of one frame of a source, on disk."""

    name: str
    rows: int


@dataclass(frozen=True)
class Staged:
    """The typed rows on disk, in parts of known length."""

    folder: Path
    files: list[StagedFile]

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(file.rows for file in self.files)

    @cached_property
    def chunks(self) -> list[Chunk]:
        """All rows in order. They depend on the frames that the source gave, not on who works."""
        found: list[Chunk] = []
        some: list[Path] = []
        start, rows = 0, 0
        for place, file in enumerate(self.files, 1):
            some.append(self.folder / file.name)
            rows += file.rows
            if rows >= _CHUNK_ROWS or place == len(self.files):
                found.append(Chunk(tuple(some), start, rows))
                some, start, rows = [], start + rows, 0
        return found


def stage(source: RawSource, folder: Path, workers: Workers, report: Report) -> Staged:
    """Write a source's rows into a new folder.

    Raises:
        DataError: it has none, or gives what it should not; the same whoever reads.
        ConfigError: it cannot be read in parts, as several workers do.
    """
    folder.mkdir()
    report("reading", 0, None)
    if workers.here:
        files = _written(
            source.frames(), source, folder, "", lambda rows: report("reading", rows, None)
        )
    else:
        files = _by_workers(source, folder, workers, report)
    if not files:
        raise DataError(f"{source.description}: no rows")
    return Staged(folder, files)


def check_parts(source: RawSource) -> None:
    """Refuse a source that several workers cannot read.

    Raises:
        ConfigError: it is one.
    """
    if not isinstance(source, PartedSource):
        raise ConfigError(
            f"{source.description}: this reader gives its rows one after another, so that workers "
            f"cannot share them; leave --on out"
        )
    if STDIN in source.paths:
        raise ConfigError(
            f"{source.description}: standard input is this process's alone; name files, or leave "
            f"--on out"
        )


def _written(
    frames: Iterable[pl.DataFrame],
    source: RawSource,
    folder: Path,
    prefix: str,
    tell: Callable[[int], None],
) -> list[StagedFile]:
    """Write frames, each to a file, but empty ones."""
    files: list[StagedFile] = []
    done = 0
    # A part is written while the next one is read.
    with ThreadPoolExecutor(max_workers=1) as writer:
        written: Future[None] | None = None
        for frame in frames:
            check_frame(frame, source)
            if len(frame):
                if written is not None:
                    written.result()
                files.append(StagedFile(f"{prefix}{len(files)}.parquet", len(frame)))
                written = writer.submit(write_parquet, frame, folder / files[-1].name)
                done += len(frame)
                tell(done)
        if written is not None:
            written.result()
    return files


class _Read(NamedTuple):
    """What came of a part of a source."""

    files: list[StagedFile]
    notes: Notes
    warned: list[tuple[str, type[Warning]]]


def _read_part(source: PartedSource, part: RawPart, folder: Path, number: int) -> _Read:
    """Write a part's frames, as a worker does."""
    if not folder.is_dir():
        raise RunError(
            f"{folder}: not seen by a worker; --out must be in a folder that every machine of the "
            f"cluster has under this name"
        )
    notes = source.notes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files = _written(source.read(part, notes), source, folder, f"{number}-", lambda rows: None)
    return _Read(files, notes, [(str(one.message), one.category) for one in caught])


def _by_workers(
    source: RawSource, folder: Path, workers: Workers, report: Report
) -> list[StagedFile]:
    """The files of all parts, in the source's order.

    What is wrong with a part may depend on those before it, as the rows that were skipped in them.
    So it is read again with what is known of those, and the error is that of one process.
    """
    assert isinstance(source, PartedSource)
    files: list[StagedFile] = []
    total, shared = source.notes(), workers.shared(source)
    parts = source.parts()
    promises = [
        workers.submit(_read_part, shared, part, folder, number)
        for number, part in enumerate(parts)
    ]
    for part, promise in zip(parts, promises, strict=True):
        before = copy.deepcopy(total)
        try:
            read = promise()
            total.add(read.notes)
        except DataError as error:
            for frame in source.read(part, before):
                check_frame(frame, source)
            raise error
        except WorkerDied as error:
            raise WorkerDied(f"{source.paths[part.file]}: {error}") from None
        for message, category in read.warned:
            warnings.warn(message, category, stacklevel=2)
        files += read.files
        report("reading", sum(file.rows for file in files), None)
    source.finish(total)
    return files
