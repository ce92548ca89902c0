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
from mlet.data.schema import SPLITS, DenseSchema
from mlet.data.source import DenseScale, RawColumns, dense_column
from mlet.data.staging import Staged
from mlet.errors import ConfigError, DataError

#: Quantiles kept of a feature, its least and greatest value among them.
_QUANTILES = 201
#: Training rows whose quantiles stand for those of all.
_SAMPLE_ROWS = 1_000_000


def write_dense(
    staged: Staged, assignment: npt.NDArray[np.uint8], root: Path, columns: RawColumns
) -> list[DenseSchema]:
    """All dense features side by side, scaled; returns what each column is.

    Raises:
        ConfigError: a scale is unknown, or the indicator of a feature has the name of another.
        DataError: a scaled value is beyond float32.
    """
    entries = _entries(staged, assignment, columns)
    rows = [int((assignment == place).sum()) for place in range(len(SPLITS))]
    outputs = [
        ColumnFile(layout.dense(root, split), np.float32, count, len(entries))
        for split, count in zip(SPLITS, rows, strict=True)
    ]
    if not entries:
        return entries
    names = list(map(dense_column, columns.dense))
    for chunk, frame in staged.chunks(*names):
        values = _scaled(frame, entries)
        infinite = ~np.isfinite(values)
        if infinite.any():
            name = entries[int(np.argwhere(infinite)[0, 1])].name
            raise DataError(
                f"dense feature {name!r} has values too large for float32; scale it with 'log'"
            )
        for place, output in enumerate(outputs):
            output.append(values[assignment[chunk] == place])
    return entries


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


def _scaled(frame: pl.DataFrame, entries: list[DenseSchema]) -> npt.NDArray[np.float32]:
    """(N, D): every feature as its entry says; what is missing is 0."""
    expressions = [_scaling(entry) for entry in entries]
    values = frame.select(expressions).to_numpy()
    for place, entry in enumerate(entries):
        if entry.quantiles is not None:
            column = frame[dense_column(entry.name)]
            ranks = _ranks(column.drop_nulls().to_numpy(), np.array(entry.quantiles))
            values = values if values.flags.writeable else values.copy()
            values[column.is_not_null().to_numpy(), place] = 2 * ranks - 1
    return values


def _scaling(entry: DenseSchema) -> pl.Expr:
    """A feature's column; of quantiles only its place."""
    column = pl.col(dense_column(entry.of or entry.name))
    filled = column.fill_null(0.0)
    scaled = {
        "none": filled,
        "log": filled.clip(lower_bound=0.0).log1p(),
        "signed_log": filled.sign() * filled.abs().log1p(),
        "standard": ((column - (entry.mean or 0.0)) / (entry.deviation or 1.0)).fill_null(0.0),
        "quantile": filled,  # replaced
        "missing": column.is_null(),
    }[entry.scale]
    return scaled.cast(pl.Float32).alias(entry.name)


def _ranks(
    values: npt.NDArray[np.float64], quantiles: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The share of training rows below each value, those equal to it counted half."""
    shares = np.linspace(0, 1, len(quantiles))
    # From both sides: a value that many rows have lies in the middle of its quantiles.
    low = np.interp(values, quantiles, shares)
    high = 1 - np.interp(-values, -quantiles[::-1], shares)
    return (low + high) / 2
