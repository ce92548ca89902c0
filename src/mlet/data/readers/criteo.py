"""Criteo display-advertising data: the Kaggle challenge's ``train.txt`` and the 1 TB logs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from mlet.atomic import atomic_path
from mlet.data import parse
from mlet.data.delimited import read_delimited
from mlet.data.readers.registry import READERS
from mlet.data.schema import RawFormat
from mlet.data.source import (
    LABEL,
    LINE,
    RawColumns,
    RawRows,
    RawSource,
    dense_column,
    field_column,
    kept,
)
from mlet.errors import ConfigError

DENSE = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))


@READERS.register("criteo")
class CriteoSource:
    """Tab-separated, no header: label, 13 integers, 26 hashed categories, empty where missing.

    The rows are in order of time (Criteo's readme), so the default split is by their order.
    """

    default_split: Literal["order"] = "order"
    format = RawFormat(name="criteo")

    def __init__(self, paths: Sequence[Path]) -> None:
        """``paths``: one file or several in order of time (``day_0``, ``day_1``, …)."""
        self.paths = tuple(paths)
        self.columns = RawColumns(dense=dict.fromkeys(DENSE, "log"), categorical=CATEGORICAL)
        self.description = f"criteo: {', '.join(path.name for path in self.paths)}"

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        for path in self.paths:
            for raw in read_delimited(path, "\t", ("label", *DENSE, *CATEGORICAL), quoted=False):
                label = parse.labels(raw, "label", path)
                yield pl.DataFrame({LABEL: label, **_features(raw, path)})

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """See `mlet.data.source.RowSource`; rows without a label have one column less."""
        for path in self.paths:
            for raw in read_delimited(path, "\t", _with_or_without_label, quoted=False):
                features = pl.DataFrame(_features(raw, path))
                yield RawRows(path, raw[LINE], features, kept(raw, keep, path))


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
