"""MovieLens ratings as click data: ``ml-latest``, ``ml-20m`` … ``32m`` (.csv), ``ml-1m`` (.dat)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from mlet.data import parse
from mlet.data.delimited import read_delimited
from mlet.data.readers.registry import READERS
from mlet.data.schema import RawFormat
from mlet.data.source import LABEL, LINE, TIME, RawColumns, RawRows, field_column, kept
from mlet.errors import ConfigError, DataError

_RATINGS = ("userId", "movieId", "rating", "timestamp")
_FILMS = ("movieId", "title", "genres")


class MovieLensSource:
    """A MovieLens folder; the label is ``rating ≥ 4``.

    Fields: ``user``, ``film``, ``year`` of the film (from its title), ``hour`` and ``weekday`` of
    the rating (UTC), and the multi-valued ``genres``. All are known before the rating is given:
    nothing is computed from other ratings, so nothing leaks from the future.
    """

    default_split: Literal["time"] = "time"
    format = RawFormat(name="movielens")

    def __init__(self, folder: Path) -> None:
        """``folder`` holds ``ratings`` and ``movies`` as .csv or .dat, also .gz or .zst.

        Raises:
            DataError: one of the two files is missing.
        """
        self.ratings = _find(folder, "ratings")
        self.films = _find(folder, "movies")
        self.columns = RawColumns(
            dense={},
            categorical=("user", "film", "year", "hour", "weekday"),
            multi_valued=("genres",),
            time=True,
        )
        self.description = f"movielens: {folder.name}"

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        films = self._read_films()
        for raw in _read(self.ratings, _RATINGS, quoted=False):
            features = self._features(raw, films)
            rating = parse.numbers(raw, "rating", self.ratings)
            if rating.null_count():
                row = raw.filter(rating.is_null()).row(0, named=True)
                raise DataError(f"{self.ratings}, line {row[LINE]}: the rating is missing")
            time = parse.integers(raw, "timestamp", self.ratings)
            label = (rating >= 4.0).cast(pl.UInt8)
            yield pl.DataFrame({LABEL: label, TIME: time, **features})

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """See `mlet.data.source.RowSource`; there need be no column ``rating``."""
        films = self._read_films()
        for raw in _read(self.ratings, _RATINGS, quoted=False, optional="rating"):
            features = pl.DataFrame(self._features(raw, films))
            yield RawRows(self.ratings, raw[LINE], features, kept(raw, keep, self.ratings))

    def _features(self, raw: pl.DataFrame, films: pl.DataFrame) -> dict[str, pl.Series]:
        time = parse.integers(raw, "timestamp", self.ratings, required=True)
        stamp = (time * 1000).cast(pl.Datetime("ms"))
        joined = raw.join(films, on="movieId", how="left", maintain_order="left")
        unknown = joined.filter(pl.col("known").is_null())
        if len(unknown):
            row = unknown.row(0, named=True)
            raise DataError(
                f"{self.ratings}, line {row[LINE]}: film {row['movieId']!r} is not in {self.films}"
            )
        return {
            field_column("user"): raw["userId"],
            field_column("film"): raw["movieId"],
            field_column("year"): joined["year"],
            field_column("hour"): stamp.dt.hour().cast(pl.String),
            field_column("weekday"): stamp.dt.weekday().cast(pl.String),
            field_column("genres"): joined["genres"],
        }

    def _read_films(self) -> pl.DataFrame:
        films = pl.concat(list(_read(self.films, _FILMS, quoted=self.films.name.count(".csv") > 0)))
        genres = pl.col("genres").fill_null("")
        return films.select(
            "movieId",
            pl.col("title").str.extract(r"\((\d{4})\)\s*$").alias("year"),
            pl.when(genres.is_in(["", "(no genres listed)"]))
            .then(pl.lit([], dtype=pl.List(pl.String)))
            .otherwise(genres.str.split("|"))
            .alias("genres"),
            pl.lit(True).alias("known"),
        ).unique("movieId", keep="first")


def _find(folder: Path, stem: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a MovieLens folder")
    for suffix in (".csv", ".dat"):
        for packed in ("", ".gz", ".zst"):
            if (path := folder / f"{stem}{suffix}{packed}").exists():
                return path
    raise DataError(f"{folder}: no {stem}.csv or {stem}.dat; is it a MovieLens folder?")


def _read(
    path: Path, columns: tuple[str, ...], *, quoted: bool, optional: str | None = None
) -> Iterator[pl.DataFrame]:
    """Frames with at least ``columns``, but for an optional one; .dat files have no header and are
    latin-1."""
    needed = tuple(name for name in columns if name != optional)
    if ".dat" in path.suffixes:

        def names(cells: list[str]) -> tuple[str, ...]:
            return needed if len(cells) == len(needed) else columns

        yield from read_delimited(path, "::", names, quoted=False, encoding="latin-1")
        return
    for frame in read_delimited(path, ",", None, quoted=quoted):
        missing = [name for name in needed if name not in frame.columns]
        if missing:
            raise DataError(f"{path}, line 1: no column {missing[0]!r}; found {frame.columns[:-1]}")
        yield frame


@READERS.register("movielens")
def _folder(paths: list[Path]) -> MovieLensSource:
    """The source of one folder.

    Raises:
        ConfigError: there is not exactly one.
    """
    if len(paths) != 1:
        raise ConfigError(f"movielens: give one folder, got {len(paths)}")
    return MovieLensSource(paths[0])
