"""Whether a column holds the same kind of values in all files; a warning where it does not."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import polars as pl

WHOLE, DECIMAL, BOOLEAN, TEXT = "whole numbers", "decimal numbers", "booleans", "texts"
_WHOLE = r"^-?(?:0|[1-9]\d*)(?:\.0+)?$"


def kind_of(values: pl.Series) -> str | None:
    """What a column holds, by its type and its values; None where all are missing."""
    dtype = values.dtype
    while isinstance(dtype, (pl.List, pl.Array)):
        values = values.explode()
        dtype = values.dtype
    values = values.drop_nulls()
    if not len(values):
        return None
    if dtype == pl.String:
        return _kind_of_texts(values)
    if dtype == pl.Boolean:
        return BOOLEAN
    if dtype.is_float():
        values = values.filter(values.is_finite())
        return WHOLE if bool((values == values.round()).all()) else DECIMAL
    return WHOLE if dtype.is_integer() else f"values of type {dtype}"


def _kind_of_texts(values: pl.Series) -> str | None:
    values = values.filter(values != "")
    if not len(values):
        return None
    if values.str.contains(_WHOLE).all():
        return WHOLE
    if values.str.to_lowercase().is_in(["true", "false"]).all():
        return BOOLEAN
    # 007 is a number to nobody whose file writes it so.
    padded = values.str.contains(r"^-?0\d").any()
    decimal = not padded and values.cast(pl.Float64, strict=False).is_not_null().all()
    return DECIMAL if decimal else TEXT


def _together(one: str, other: str | None) -> str:
    """The kind of values of two kinds."""
    kinds = {one, other or one}
    if len(kinds) == 1:
        return one
    return DECIMAL if kinds == {WHOLE, DECIMAL} else TEXT


class SameKinds:
    """What columns hold in every file."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._kinds: dict[str, dict[Path, str]] = {name: {} for name in columns}

    def add(self, frame: pl.DataFrame, path: Path) -> None:
        """Look at some rows of a file."""
        for name, by_file in self._kinds.items():
            kind = kind_of(frame[name])
            if kind is not None:
                by_file[path] = _together(kind, by_file.get(path))

    def add_all(self, later: SameKinds) -> None:
        """Take over what was seen of rows that come next."""
        for name, by_file in later._kinds.items():
            for path, kind in by_file.items():
                self._kinds[name][path] = _together(kind, self._kinds[name].get(path))

    def warn(self) -> None:
        """Name every column that is of one kind in some file and of another in another."""
        for name, by_file in self._kinds.items():
            files = list(by_file.items())
            for path, kind in files[1:]:
                if kind != files[0][1]:
                    warnings.warn(
                        f"column {name!r} holds {files[0][1]} in {files[0][0]}, {kind} in {path}; "
                        f"categories are compared as texts: 7 and 7.0 are one, 7 and 07 are two",
                        stacklevel=2,
                    )
                    break
