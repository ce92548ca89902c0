"""libFM text as published for Frappe and MovieLens-tag: ``label id:1 id:1 …``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from mlet.data.compressed import STDIN
from mlet.data.delimited import read_delimited
from mlet.data.files import find_files
from mlet.data.readers.registry import READERS
from mlet.data.schema import RawFormat
from mlet.data.source import (
    LABEL,
    LINE,
    SPLIT,
    NoNotes,
    RawColumns,
    RawPart,
    RawRows,
    WholeFiles,
    field_column,
    frames_of,
    kept,
)
from mlet.errors import ConfigError, DataError


@READERS.register("libfm")
class LibFMSource(WholeFiles):
    """One-hot libFM rows with one feature a field: the i-th feature of every row is field i.

    Labels are 1 and -1 (or 0). Rows of varying length have no fields and are refused.
    """

    format = RawFormat(name="libfm")

    def __init__(self, paths: Sequence[Path], given: Mapping[str, Path] | None = None) -> None:
        """Read ``paths``, to be split by mlet, or the published ``train``/``valid``/``test``.

        Args:
            paths: files, folders or patterns, whose rows are pooled and then split.
            given: files by split (``train``, ``valid``, ``test``), kept as they are.

        Raises:
            DataError: the first row cannot be read.
        """
        splits = ("train", "valid", "test")
        named = [(paths, None), *(([p], splits.index(split)) for split, p in (given or {}).items())]
        self._files = [(file.path, split) for some, split in named for file in find_files(some)]
        self.paths = tuple(path for path, _ in self._files)
        self.default_split: Literal["random", "given"] = "given" if given else "random"
        self._width = self._first_width(self._files[0][0])
        self._names = tuple(f"field_{place}" for place in range(1, self._width + 1))
        self.columns = RawColumns(dense={}, categorical=self._names, split=bool(given))
        self.description = f"libfm: {', '.join(path.name for path, _ in self._files)}"

    @staticmethod
    def _first_width(path: Path) -> int:
        """Number of features in the first row."""
        if path == STDIN:
            raise ConfigError("libfm: standard input cannot be looked at first; name files")
        frame = next(read_delimited(path, "\x1e", ("row",), quoted=False, block_bytes=65_536))
        cells = str(frame["row"][0]).split(" ")
        return len(cells) - (":" not in cells[0])

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        return frames_of(self)

    def read(self, part: RawPart, notes: NoNotes) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.PartedSource`."""
        path, split = self._files[part.file]
        for raw in read_delimited(path, " ", ("label", *self._names), quoted=False):
            label = raw["label"].cast(pl.Float64, strict=False)
            bad = ~label.is_in([1.0, 0.0, -1.0]).fill_null(False)
            if bad.any():
                row = raw.filter(bad).row(0, named=True)
                raise DataError(
                    f"{path}, line {row[LINE]}: label {row['label']!r}, expected 1, 0 or -1"
                )
            columns: dict[str, pl.Series] = {LABEL: (label > 0).cast(pl.UInt8)}
            if split is not None:
                columns[SPLIT] = pl.repeat(split, len(raw), dtype=pl.UInt8, eager=True)
            for name in self._names:
                columns[field_column(name)] = _category(raw, name, path)
            yield pl.DataFrame(columns)

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """See `mlet.data.source.RowSource`; the first row says whether there are labels."""
        for path, _ in self._files:
            for raw in read_delimited(path, " ", self._with_or_without_label, quoted=False):
                features = {field_column(name): _category(raw, name, path) for name in self._names}
                yield RawRows(path, raw[LINE], pl.DataFrame(features), kept(raw, keep, path))

    def _with_or_without_label(self, cells: list[str]) -> tuple[str, ...]:
        return self._names if ":" in cells[0] else ("label", *self._names)


def _category(raw: pl.DataFrame, name: str, path: Path) -> pl.Series:
    category = raw[name].str.extract(r"^(\d+):1(?:\.0*)?$")
    if category.null_count():
        row = raw.filter(category.is_null()).row(0, named=True)
        raise DataError(
            f"{path}, line {row[LINE]}: feature {row[name]!r} of {name!r}, expected 'id:1'; only "
            f"one-hot libFM files with one feature a field are read"
        )
    return category
