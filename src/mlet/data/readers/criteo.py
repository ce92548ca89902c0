"""Criteo display-advertising data: the Kaggle challenge's ``train.txt``, and the 1 TB logs, whose
24 files ``day_0.gz`` … ``day_23.gz`` hold a day each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from mlet.atomic import atomic_path
from mlet.data import parse
from mlet.data.delimited import read_delimited
from mlet.data.files import find_files
from mlet.data.readers.registry import READERS
from mlet.data.schema import RawFormat
from mlet.data.source import (
    LABEL,
    LINE,
    TIME,
    NoNotes,
    RawColumns,
    RawPart,
    RawRows,
    RawSource,
    SplitBy,
    WholeFiles,
    dense_column,
    field_column,
    frames_of,
    kept,
)
from mlet.errors import ConfigError, DataError

DENSE = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
_TYPES = dict.fromkeys(DENSE, pl.Int64)
#: A file of the 1 TB logs, unpacked or not.
_DAY_FILE = re.compile(r"day_(\d+)(?:\.|$)")


@READERS.register("criteo")
class CriteoSource(WholeFiles):
    """Tab-separated, no header: label, 13 integers, 26 hashed categories, empty where missing.

    The rows are in order of time (Criteo's readme), so the default split is by their order; of
    several day files, by their last day.

    Attributes:
        paths: the files as they were named or found.
        days: the day of each file of the 1 TB logs; None of others.
    """

    format = RawFormat(name="criteo")

    def __init__(self, paths: Sequence[Path]) -> None:
        """``paths``: files, folders or patterns; day files in any order, others in that of time.

        Raises:
            DataError: a folder or pattern holds no files, or two files are of one day.
        """
        self.paths = tuple(file.path for file in find_files(paths))
        self.days = _days(self.paths)
        self.default_split: SplitBy = "last-day" if len(self.days or ()) > 1 else "order"
        self.columns = RawColumns(
            dense=dict.fromkeys(DENSE, "log"),
            categorical=CATEGORICAL,
            time=self.days is not None,
            days=self.days is not None,
        )
        self._order = sorted(
            range(len(self.paths)), key=lambda place: self.days[place] if self.days else place
        )
        self.description = f"criteo: {', '.join(self.paths[place].name for place in self._order)}"

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`; day 10 comes after day 9, however they are named."""
        return frames_of(self)

    def parts(self) -> list[RawPart]:
        """See `mlet.data.source.PartedSource`."""
        return [RawPart(place) for place in self._order]

    def read(self, part: RawPart, notes: NoNotes) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.PartedSource`."""
        path = self.paths[part.file]
        names = ("label", *DENSE, *CATEGORICAL)
        for raw in read_delimited(path, "\t", names, quoted=False, types=_TYPES):
            columns = {LABEL: parse.labels(raw, "label", path), **_features(raw, path)}
            if self.days is not None:
                columns[TIME] = pl.repeat(
                    self.days[part.file], len(raw), dtype=pl.Int64, eager=True
                )
            yield pl.DataFrame(columns)

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """See `mlet.data.source.RowSource`; rows without a label have one column less. They come
        in the order in which their files were named."""
        for path in self.paths:
            names = _with_or_without_label
            for raw in read_delimited(path, "\t", names, quoted=False, types=_TYPES):
                features = pl.DataFrame(_features(raw, path))
                yield RawRows(path, raw[LINE], features, kept(raw, keep, path))


def _days(paths: Sequence[Path]) -> list[int] | None:
    """The day of each file, where all are named as those of the 1 TB logs.

    Raises:
        DataError: two are of the same.
    """
    found: dict[int, Path] = {}
    for path in paths:
        named = _DAY_FILE.match(path.name)
        if named is None:
            return None
        day = int(named[1])
        if day in found:
            raise DataError(f"{path}: day {day} is in {found[day]}, too; name one of them")
        found[day] = path
    return list(found)


def _with_or_without_label(cells: list[str]) -> tuple[str, ...]:
    unlabelled = len(cells) == len(DENSE) + len(CATEGORICAL)
    return (*DENSE, *CATEGORICAL) if unlabelled else ("label", *DENSE, *CATEGORICAL)


def _features(raw: pl.DataFrame, path: Path) -> dict[str, pl.Series]:
    dense = {dense_column(name): parse.integers(raw, name, path).cast(pl.Float64) for name in DENSE}
    return dense | {field_column(name): raw[name] for name in CATEGORICAL}


def write_criteo_tsv(source: RawSource, path: Path, report: Callable[[int], None]) -> None:
    """Write rows as Criteo publishes its own; ``report`` is told how many are written.

    Raises:
        ConfigError: the source has not Criteo's 13 dense features and 26 fields.
    """
    dense, fields = source.columns.dense, source.columns.categorical
    if (len(dense), len(fields)) != (len(DENSE), len(CATEGORICAL)):
        raise ConfigError("Criteo's format has 13 dense features and 26 fields: use preset criteo")
    integers = [pl.col(dense_column(name)).cast(pl.Int64) for name in dense]
    done = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for frame in source.frames():
            columns = frame.select(LABEL, *integers, *map(field_column, fields))
            columns.write_csv(file, include_header=False, separator="\t")
            done += len(frame)
            report(done)
