"""Avazu click-through-rate challenge: ``train.csv`` (or ``train.gz``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

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
    WholeFiles,
    field_column,
    frames_of,
    kept,
)
from mlet.errors import DataError

CATEGORICAL = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category"),
    *("app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *(f"C{i}" for i in range(14, 22)),
)


@READERS.register("avazu")
class AvazuSource(WholeFiles):
    """Comma-separated with a header; ``hour`` is YYMMDDHH.

    The 21 published categorical columns, plus ``hour`` (of the day) and ``weekday`` read off the
    time stamp. The impression ``id`` is not a feature.
    """

    default_split: Literal["time"] = "time"
    format = RawFormat(name="avazu")

    def __init__(self, paths: Sequence[Path]) -> None:
        """``paths``: files, folders or patterns; all with the same header."""
        self.paths = tuple(file.path for file in find_files(paths))
        self.columns = RawColumns(
            dense={}, categorical=(*CATEGORICAL, "hour", "weekday"), time=True
        )
        self.description = f"avazu: {', '.join(path.name for path in self.paths)}"

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        return frames_of(self)

    def read(self, part: RawPart, notes: NoNotes) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.PartedSource`."""
        path = self.paths[part.file]
        for raw in self._raw(path, "click", "hour", *CATEGORICAL):
            time = parse.integers(raw, "hour", path, required=True)
            features = _features(raw, path)
            yield pl.DataFrame({LABEL: parse.labels(raw, "click", path), TIME: time, **features})

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """See `mlet.data.source.RowSource`."""
        for path in self.paths:
            for raw in self._raw(path, "hour", *CATEGORICAL):
                parse.integers(raw, "hour", path, required=True)
                features = pl.DataFrame(_features(raw, path))
                yield RawRows(path, raw[LINE], features, kept(raw, keep, path))

    def _raw(self, path: Path, *names: str) -> Iterator[pl.DataFrame]:
        """A file's frames of text with at least these columns."""
        for raw in read_delimited(path, ",", None, quoted=False):
            missing = [name for name in names if name not in raw.columns]
            if missing:
                raise DataError(
                    f"{path}, line 1: no column {missing[0]!r}; expected the header of Avazu's "
                    f"train.csv (id, click, hour, C1, …)"
                )
            yield raw


def _features(raw: pl.DataFrame, path: Path) -> dict[str, pl.Series]:
    stamp = ("20" + raw["hour"] + "00").str.to_datetime("%Y%m%d%H%M", strict=False)
    if stamp.null_count():
        row = raw.filter(stamp.is_null()).row(0, named=True)
        raise DataError(
            f"{path}, line {row[LINE]}: column 'hour' holds {row['hour']!r}, expected YYMMDDHH"
        )
    return {field_column(name): raw[name] for name in CATEGORICAL} | {
        field_column("hour"): stamp.dt.hour().cast(pl.String),
        field_column("weekday"): stamp.dt.weekday().cast(pl.String),
    }
