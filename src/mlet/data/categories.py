"""The categories of fields: counted, and written as ids, some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data import layout
from mlet.data.column_file import ColumnFile
from mlet.data.encoding import explode
from mlet.data.parquet import read_parquet, write_parquet
from mlet.data.schema import SPLITS
from mlet.data.source import field_column
from mlet.data.split import DividedChunk, Division
from mlet.data.vocabulary import Vocabulary, VocabularyBuilder
from mlet.data.workers import Promise, Workers, shares

#: Categories that one worker merges the counts of.
_MERGED = 4_000_000

#: A vocabulary, or where it is written, for workers of other processes.
Known: TypeAlias = Vocabulary | Path

#: Values of a bag field in each split, of some rows.
BagSizes: TypeAlias = tuple[int, ...]


def begin_counting(
    workers: Workers,
    division: Division,
    columns: Mapping[str, bool],
    scratch: Path,
    *,
    training: bool = True,
) -> Promise[VocabularyBuilder]:
    """Count the categories of some columns together, in training rows or in all.

    Args:
        workers: who counts.
        division: the rows.
        columns: of frames, by name: whether they hold bags.
        scratch: a folder for the counts of some rows; one of these columns' own.
        training: whether training rows alone count.
    """
    if workers.here:
        return workers.submit(_count, division.chunks, columns, training)
    scratch.mkdir(parents=True)
    buckets = min(workers.count, -(-sum(division.rows) // _MERGED))
    promises = [
        workers.submit(_write_counts, some, columns, training, buckets, scratch, number)
        for number, some in enumerate(shares(workers, division.chunks))
    ]

    def merged() -> VocabularyBuilder:
        parts = [promise() for promise in promises]
        merging = [workers.submit(_merge, list(files)) for files in zip(*parts, strict=True)]
        builder = VocabularyBuilder()
        for promise in merging:
            builder.merge(read_parquet(promise()))
        return builder

    return merged


def _count(
    chunks: Sequence[DividedChunk], columns: Mapping[str, bool], training: bool
) -> VocabularyBuilder:
    """Count the categories in some rows."""
    builder = VocabularyBuilder()
    for name, bags in columns.items():
        for chunk in chunks:
            column = chunk.read(name)[name]
            if training:
                column = column.filter(pl.Series(chunk.places() == 0))
            builder.add(explode(column) if bags else column)
    return builder


def _write_counts(
    chunks: Sequence[DividedChunk],
    columns: Mapping[str, bool],
    training: bool,
    buckets: int,
    scratch: Path,
    number: int,
) -> list[Path]:
    """Count, and write a file for each bucket of categories.

    Should two machines' hashes differ, a category is merged when the buckets are.
    """
    counts = _count(chunks, columns, training).counts()
    bucket = counts["category"].hash() % buckets
    files = [scratch / f"{number}-{place}.parquet" for place in range(buckets)]
    for place, file in enumerate(files):
        write_parquet(counts.filter(bucket == place), file)
    return files


def _merge(files: Sequence[Path]) -> Path:
    """Merge the counts of some files into another beside the first."""
    builder = VocabularyBuilder()
    for file in files:
        builder.merge(read_parquet(file))
    merged = files[0].with_suffix(".merged")
    write_parquet(builder.counts(), merged)
    return merged


@dataclass(frozen=True)
class Ids:
    """Where the ids of a one-valued column go.

    Attributes:
        column: of frames.
        files: of each split.
        missing: the id of what is missing, if it is not the one of the category "".
    """

    column: str
    files: tuple[ColumnFile, ...]
    missing: int | None = None

    def write(self, chunks: Sequence[DividedChunk], known: Known) -> None:
        """Encode and write the column in some rows."""
        vocabulary = _load(known)
        for chunk in chunks:
            column = chunk.read(self.column)[self.column]
            ids = vocabulary.encode(column)
            if self.missing is not None:
                nothing = (column.fill_null("") == "").to_numpy()
                ids = np.where(nothing, self.missing, ids).astype(np.int32)
            for file, (start, rows) in zip(self.files, chunk.of_splits(), strict=True):
                file.write(start, ids[rows])


def begin_ids(workers: Workers, division: Division, ids: Ids, known: Known) -> list[Promise[None]]:
    """Write a column's ids in all rows."""
    return [workers.submit(ids.write, some, known) for some in shares(workers, division.chunks)]


def field_ids(root: Path, division: Division, name: str) -> Ids:
    """The files of a one-valued field."""
    files = [
        ColumnFile(layout.ids(root, split, name), np.int32, rows)
        for split, rows in zip(SPLITS, division.rows, strict=True)
    ]
    return Ids(field_column(name), tuple(files))


def begin_bag_sizes(workers: Workers, division: Division, name: str) -> Promise[list[BagSizes]]:
    """How many values the bags of a field hold in each split, by chunk."""
    promises = [
        workers.submit(_bag_sizes, some, field_column(name))
        for some in shares(workers, division.chunks)
    ]
    return lambda: [sizes for promise in promises for sizes in promise()]


def _bag_sizes(chunks: Sequence[DividedChunk], column: str) -> list[BagSizes]:
    return [
        tuple(int(lengths[rows].sum()) for _, rows in chunk.of_splits())
        for chunk in chunks
        for lengths in [_lengths(chunk.read(column)[column])]
    ]


def _lengths(bags: pl.Series) -> npt.NDArray[np.int64]:
    return bags.list.len().to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Bags:
    """Where the ids of a multi-valued field go.

    Attributes:
        column: of frames.
        values, offsets: files of each split.
    """

    column: str
    values: tuple[ColumnFile, ...]
    offsets: tuple[ColumnFile, ...]

    def write(self, chunks: Sequence[tuple[DividedChunk, BagSizes]], known: Known) -> None:
        """Encode and write the field in some rows, of which it is known how many values come
        before them in each split."""
        vocabulary = _load(known)
        for chunk, before in chunks:
            bags = chunk.read(self.column)[self.column]
            lengths = _lengths(bags)
            for place, (start, rows) in enumerate(chunk.of_splits()):
                ends = before[place] + np.cumsum(lengths[rows])
                self.offsets[place].write(start + 1, ends)
                ids = vocabulary.encode(explode(bags.filter(pl.Series(rows))))
                self.values[place].write(before[place], ids)


def begin_bags(
    workers: Workers,
    division: Division,
    root: Path,
    name: str,
    sizes: Sequence[BagSizes],
    known: Known,
) -> list[Promise[None]]:
    """Write a multi-valued field in all rows; ``sizes`` as of `begin_bag_sizes`."""
    ends = np.cumsum(np.array(sizes, np.int64), axis=0)
    before = [(0,) * len(SPLITS), *(tuple(map(int, end)) for end in ends[:-1])]
    values, offsets = [], []
    for split, rows, total in zip(SPLITS, division.rows, ends[-1], strict=True):
        offsets.append(
            ColumnFile(layout.bag_offsets(root, split, name), np.int64, rows + 1, short_header=True)
        )
        offsets[-1].write(0, np.zeros(1, np.int64))
        values.append(ColumnFile(layout.bag_values(root, split, name), np.int32, int(total)))
    bags = Bags(field_column(name), tuple(values), tuple(offsets))
    chunks = list(zip(division.chunks, before, strict=True))
    return [workers.submit(bags.write, some, known) for some in shares(workers, chunks)]


#: The vocabulary that a worker has read last, and of which file: its next rows are mostly of it.
_loaded: list[tuple[Path, Vocabulary]] = []


def _load(known: Known) -> Vocabulary:
    if isinstance(known, Vocabulary):
        return known
    path = known.absolute()
    if not _loaded or _loaded[0][0] != path:
        _loaded.clear()  # before another is there
        table = read_parquet(path)
        _loaded.append((path, Vocabulary(table, len(table) - 1)))
    return _loaded[0][1]
