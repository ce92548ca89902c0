"""The typed rows of a source, put on disk once and read again a column at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import polars as pl

from mlet.data.parquet import read_parquet, write_parquet
from mlet.data.source import RawSource, check_frame
from mlet.errors import DataError

#: Called with what is being done and how many of how many steps (None: unknown) are behind.
Report: TypeAlias = Callable[[str, int, int | None], None]

_CHUNK_ROWS = 2_000_000


@dataclass(frozen=True)
class Staged:
    """The typed rows on disk, in parts of known length."""

    folder: Path
    lengths: list[int]

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(self.lengths)

    def chunks(self, *columns: str) -> Iterator[tuple[slice, pl.DataFrame]]:
        """The chosen columns, a few million rows at a time, and which rows they are."""
        part, start = 0, 0
        while part < len(self.lengths):
            stop, rows = part, 0
            while stop < len(self.lengths) and (stop == part or rows < _CHUNK_ROWS):
                rows += self.lengths[stop]
                stop += 1
            frames = [
                read_parquet(self.folder / f"{index}.parquet", list(columns))
                for index in range(part, stop)
            ]
            yield slice(start, start + rows), pl.concat(frames)
            part, start = stop, start + rows


def stage(source: RawSource, folder: Path, report: Report) -> Staged:
    """Write a source's rows into a new folder.

    Raises:
        DataError: it has none, or gives what it should not.
    """
    folder.mkdir()
    lengths: list[int] = []
    report("reading", 0, None)
    # A part is written while the next one is read.
    with ThreadPoolExecutor(max_workers=1) as writer:
        written: Future[None] | None = None
        for frame in source.frames():
            check_frame(frame, source)
            if len(frame):
                if written is not None:
                    written.result()
                path = folder / f"{len(lengths)}.parquet"
                written = writer.submit(write_parquet, frame, path)
                lengths.append(len(frame))
                report("reading", sum(lengths), None)
        if written is not None:
            written.result()
    if not lengths:
        raise DataError(f"{source.description}: no rows")
    return Staged(folder, lengths)
