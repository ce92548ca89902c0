"""Columns to score by: for each row a number, equal where the value is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data import layout
from mlet.data.column_file import ColumnFile
from mlet.data.parquet import write_parquet
from mlet.data.schema import SPLITS
from mlet.data.source import GROUP, kept_column
from mlet.data.staging import Staged
from mlet.data.vocabulary import VocabularyBuilder


def write_groups(staged: Staged, assignment: npt.NDArray[np.uint8], root: Path) -> None:
    """Write the group of every row of every split."""
    _write_numbers(staged, GROUP, assignment, [layout.groups(root, split) for split in SPLITS])


def write_kept(
    staged: Staged, assignment: npt.NDArray[np.uint8], root: Path, names: Sequence[str]
) -> None:
    """Write the columns that no model sees, and what their numbers stand for."""
    for name in names:
        files = [layout.kept(root, split, name) for split in SPLITS]
        values = layout.kept_values(root, name)
        for path in (*files, values):
            path.parent.mkdir(exist_ok=True)
        column = kept_column(name)
        write_parquet(_write_numbers(staged, column, assignment, files).to_frame("value"), values)


def _write_numbers(
    staged: Staged, column: str, assignment: npt.NDArray[np.uint8], files: Sequence[Path]
) -> pl.Series:
    """Write a number for each row of every split, -1 where nothing is.

    Unlike categories, values that training never saw are told apart: memory depends on how many
    there are.

    Returns:
        What the numbers stand for.
    """
    builder = VocabularyBuilder()
    for _, frame in staged.chunks(column):
        builder.add(frame[column])
    numbers = builder.build(1)
    outputs = [
        ColumnFile(path, np.int32, int((assignment == place).sum()))
        for place, path in enumerate(files)
    ]
    for chunk, frame in staged.chunks(column):
        missing = (frame[column].fill_null("") == "").to_numpy()
        found = np.where(missing, -1, numbers.encode(frame[column])).astype(np.int32)
        for place, output in enumerate(outputs):
            output.append(found[assignment[chunk] == place])
    return numbers.table["category"]
