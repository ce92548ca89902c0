"""Columns to score by: for each row a number, equal where the value is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from mlet.data import layout
from mlet.data.categories import Ids, Known, begin_counting, begin_ids
from mlet.data.column_file import ColumnFile
from mlet.data.parquet import write_parquet
from mlet.data.schema import SPLITS
from mlet.data.source import GROUP, kept_column
from mlet.data.split import Division
from mlet.data.workers import Workers


def write_groups(workers: Workers, division: Division, root: Path, scratch: Path) -> None:
    """Write the group of every row of every split; ``scratch`` is a folder for meanwhile."""
    files = [layout.groups(root, split) for split in SPLITS]
    _write_numbers(workers, division, GROUP, files, scratch / "group")


def write_kept(
    workers: Workers, division: Division, root: Path, names: Sequence[str], scratch: Path
) -> None:
    """Write the columns that no model sees, and what their numbers stand for."""
    for place, name in enumerate(names):
        files = [layout.kept(root, split, name) for split in SPLITS]
        values = layout.kept_values(root, name)
        for path in (*files, values):
            path.parent.mkdir(exist_ok=True)
        column, own = kept_column(name), scratch / f"kept-{place}"
        numbers = _write_numbers(workers, division, column, files, own)
        write_parquet(numbers.to_frame("value"), values)


def _write_numbers(
    workers: Workers, division: Division, column: str, files: Sequence[Path], scratch: Path
) -> pl.Series:
    """Write a number for each row of every split, -1 where nothing is.

    Unlike categories, values that training never saw are told apart: memory depends on how many
    there are.

    Returns:
        What the numbers stand for.
    """
    counting = begin_counting(workers, division, {column: False}, scratch, training=False)
    numbers = counting().build(1)
    outputs = tuple(
        ColumnFile(path, np.int32, rows) for path, rows in zip(files, division.rows, strict=True)
    )
    known: Known = numbers
    if not workers.here:
        known = scratch / "values.parquet"
        numbers.write(known, scratch / "none.parquet")
    for promise in begin_ids(workers, division, Ids(column, outputs, missing=-1), known):
        promise()
    return numbers.table["category"]
