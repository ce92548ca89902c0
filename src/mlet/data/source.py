"""What every reader of raw data delivers to `mlet.data.prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import polars as pl

LABEL, TIME, SPLIT, PROBABILITY = "label", "time", "split", "probability"

DenseScale = Literal["log", "none"]


def dense_column(name: str) -> str:
    """Frame column of a dense feature; prefixed so that no name can collide with the label's."""
    return f"dense:{name}"


def field_column(name: str) -> str:
    """Frame column of a categorical field."""
    return f"field:{name}"


@dataclass(frozen=True)
class RawColumns:
    """The columns a source's frames have, beside ``label`` (UInt8, 0 or 1).

    Attributes:
        dense: features by name, with how each is scaled; Float64 columns, null where missing.
        categorical: one-valued fields; String columns. Missing is a category of its own, "".
        multi_valued: fields with a bag of categories a row; List(String) columns.
        time: whether there is a ``time`` column (Int64) to split by.
        split: whether there is a ``split`` column (UInt8: 0 train, 1 valid, 2 test).
        probability: whether there is the true click ``probability`` (synthetic data only).
    """

    dense: dict[str, DenseScale]
    categorical: tuple[str, ...]
    multi_valued: tuple[str, ...] = ()
    time: bool = False
    split: bool = False
    probability: bool = False


class RawSource(Protocol):
    """Raw click data: what it is, which columns it has, and its rows a frame at a time."""

    @property
    def description(self) -> str:
        """One line for the schema: the format and the files."""
        ...

    @property
    def columns(self) -> RawColumns:
        """The columns of every frame."""
        ...

    @property
    def default_split(self) -> Literal["time", "order", "random", "given"]:
        """How to split unless the user says otherwise."""
        ...

    def frames(self) -> Iterator[pl.DataFrame]:
        """The rows, in file order.

        Raises:
            DataError: the input is damaged; names the file and line.
        """
        ...
