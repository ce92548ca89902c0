"""Dense features: what is learned of the training rows, and the columns that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data import layout
from mlet.data.column_file import ColumnFile
from mlet.data.scaling import scaled_dense
from mlet.data.schema import SPLITS, DenseSchema
from mlet.data.source import DenseScale, RawColumns, dense_column
from mlet.data.staging import Staged
from mlet.errors import ConfigError

#: Quantiles kept of a feature, its least and greatest value among them.
_QUANTILES = 201
#: Training rows whose quantiles stand for those of all.
_SAMPLE_ROWS = 1_000_000


def write_dense(
    staged: Staged,
    assignment: npt.NDArray[np.uint8],
    root: Path,
    columns: RawColumns,
    known: list[DenseSchema] | None = None,
) -> list[DenseSchema]:
    """All dense features side by side, scaled; returns what each column is.

    ``known`` are the same columns of a data set that is extended, whose scaling they keep.

    Raises:
        ConfigError: a scale is unknown, or the indicator of a feature has the name of another.
        DataError: a scaled value is beyond float32.
    """
    entries = _entries(staged, assignment, columns) if known is None else known
    rows = [int((assignment == place).sum()) for place in range(len(SPLITS))]
    outputs = [
        ColumnFile(layout.dense(root, split), np.float32, count, len(entries))
        for split, count in zip(SPLITS, rows, strict=True)
    ]
    if not entries:
        return entries
    names = list(map(dense_column, columns.dense))
    missing: set[str] = set()
    for chunk, frame in staged.chunks(*names):
        values = scaled_dense(frame, entries)
        for place, output in enumerate(outputs):
            output.append(values[assignment[chunk] == place])
        train = frame.filter(pl.Series(assignment[chunk] == 0))
        missing |= {name for name in names if train[name].null_count()}
    found: dict[str, bool | None] = {name: dense_column(name) in missing for name in columns.dense}
    for entry in known or ():
        if entry.of is None and not found[entry.name]:  # it was, or is not known to have been
            found[entry.name] = entry.missing_in_training
    return [
        entry.model_copy(update={"missing_in_training": found[entry.name]})
        if entry.of is None
        else entry
        for entry in entries
    ]


def _entries(
    staged: Staged, assignment: npt.NDArray[np.uint8], columns: RawColumns
) -> list[DenseSchema]:
    entries = []
    for name, scale in columns.dense.items():
        if scale not in get_args(DenseScale):
            known = ", ".join(get_args(DenseScale))
            raise ConfigError(f"dense feature {name!r}: no scale {scale!r}; there are {known}")
        entry = DenseSchema(name=name, scale=scale)
        if scale in ("standard", "quantile"):
            entry = _fitted(entry, staged, assignment)
        entries.append(entry)
        if name in columns.indicated:
            indicator = f"{name} is missing"
            if indicator in columns.dense:
                raise ConfigError(f"dense feature {indicator!r} has the name of an indicator")
            entries.append(DenseSchema(name=indicator, scale="missing", of=name))
    return entries


def _training_values(
    staged: Staged, assignment: npt.NDArray[np.uint8], name: str
) -> Iterator[npt.NDArray[np.float64]]:
    """What is there of a feature in the training rows."""
    column = dense_column(name)
    for chunk, frame in staged.chunks(column):
        yield frame[column].filter(pl.Series(assignment[chunk] == 0)).drop_nulls().to_numpy()


def _fitted(entry: DenseSchema, staged: Staged, assignment: npt.NDArray[np.uint8]) -> DenseSchema:
    """The entry with what its scale takes from the training rows."""
    if entry.scale == "standard":
        count, total = 0, 0.0
        for values in _training_values(staged, assignment, entry.name):
            count, total = count + len(values), total + float(values.sum())
        mean = total / max(count, 1)
        squares = sum(
            float(((values - mean) ** 2).sum())
            for values in _training_values(staged, assignment, entry.name)
        )
        # A feature that never varies stays 0.
        deviation = float(np.sqrt(squares / max(count, 1))) or 1.0
        return entry.model_copy(update={"mean": mean, "deviation": deviation})
    every = -(-int((assignment == 0).sum()) // _SAMPLE_ROWS)
    sample = [values[::every] for values in _training_values(staged, assignment, entry.name)]
    values = np.concatenate(sample)
    if not len(values):
        values = np.zeros(1)
    quantiles = np.quantile(values, np.linspace(0, 1, _QUANTILES))
    return entry.model_copy(update={"quantiles": quantiles.tolist()})
