"""Dense features: what is learned of the training rows, and the columns that come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data import layout
from mlet.data.column_file import ColumnFile
from mlet.data.scaling import scaled_dense
from mlet.data.schema import SPLITS, DenseSchema
from mlet.data.source import DenseScale, RawColumns, dense_column
from mlet.data.split import DividedChunk, Division
from mlet.data.workers import Workers, shares
from mlet.errors import ConfigError

Result = TypeVar("Result")

#: Quantiles kept of a feature, its least and greatest value among them.
_QUANTILES = 201
#: Training rows whose quantiles stand for those of all.
_SAMPLE_ROWS = 1_000_000


def write_dense(
    workers: Workers,
    division: Division,
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
    entries = _entries(workers, division, columns) if known is None else known
    outputs = [
        ColumnFile(layout.dense(root, split), np.float32, count, len(entries))
        for split, count in zip(SPLITS, division.rows, strict=True)
    ]
    if not entries:
        return entries
    names = list(map(dense_column, columns.dense))
    promises = [
        workers.submit(_write, some, entries, names, outputs)
        for some in shares(workers, division.chunks)
    ]
    missing = set[str]().union(*(promise() for promise in promises))
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


def _write(
    chunks: Sequence[DividedChunk],
    entries: list[DenseSchema],
    names: Sequence[str],
    outputs: Sequence[ColumnFile],
) -> set[str]:
    """Write the features of some rows; returns the columns that a training row lacks."""
    missing: set[str] = set()
    for chunk in chunks:
        frame = chunk.read(*names)
        values, splits = scaled_dense(frame, entries), chunk.of_splits()
        for output, (start, rows) in zip(outputs, splits, strict=True):
            output.write(start, values[rows])
        train = frame.filter(pl.Series(splits[0][1]))
        missing |= {name for name in names if train[name].null_count()}
    return missing


def _entries(workers: Workers, division: Division, columns: RawColumns) -> list[DenseSchema]:
    entries = []
    for name, scale in columns.dense.items():
        if scale not in get_args(DenseScale):
            known = ", ".join(get_args(DenseScale))
            raise ConfigError(f"dense feature {name!r}: no scale {scale!r}; there are {known}")
        entry = DenseSchema(name=name, scale=scale)
        if scale in ("standard", "quantile"):
            entry = _fitted(entry, workers, division)
        entries.append(entry)
        if name in columns.indicated:
            indicator = f"{name} is missing"
            if indicator in columns.dense:
                raise ConfigError(f"dense feature {indicator!r} has the name of an indicator")
            entries.append(DenseSchema(name=indicator, scale="missing", of=name))
    return entries


def _fitted(entry: DenseSchema, workers: Workers, division: Division) -> DenseSchema:
    """The entry with what its scale takes from the training rows."""

    def of_chunks(function: Callable[..., list[Result]], *arguments: object) -> list[Result]:
        """What a function gives for each chunk, in order: sums do not depend on who works."""
        promises = [
            workers.submit(function, some, dense_column(entry.name), *arguments)
            for some in shares(workers, division.chunks)
        ]
        return [one for promise in promises for one in promise()]

    if entry.scale == "standard":
        count, total = 0, 0.0
        for values, added in of_chunks(_sums):
            count, total = count + values, total + added
        mean = total / max(count, 1)
        squares = sum(of_chunks(_squares, mean))
        # A feature that never varies stays 0.
        deviation = float(np.sqrt(squares / max(count, 1))) or 1.0
        return entry.model_copy(update={"mean": mean, "deviation": deviation})
    every = -(-division.rows[0] // _SAMPLE_ROWS)
    sample = np.concatenate(of_chunks(_sample, every))
    if not len(sample):
        sample = np.zeros(1)
    quantiles = np.quantile(sample, np.linspace(0, 1, _QUANTILES))
    return entry.model_copy(update={"quantiles": quantiles.tolist()})


def _training_values(chunk: DividedChunk, column: str) -> npt.NDArray[np.float64]:
    """What is there of a feature in the training rows."""
    values = chunk.read(column)[column].filter(pl.Series(chunk.places() == 0))
    there: npt.NDArray[np.float64] = values.drop_nulls().to_numpy()
    return there


def _sums(chunks: Sequence[DividedChunk], column: str) -> list[tuple[int, float]]:
    values = (_training_values(chunk, column) for chunk in chunks)
    return [(len(some), float(some.sum())) for some in values]


def _squares(chunks: Sequence[DividedChunk], column: str, mean: float) -> list[float]:
    values = (_training_values(chunk, column) for chunk in chunks)
    return [float(((some - mean) ** 2).sum()) for some in values]


def _sample(
    chunks: Sequence[DividedChunk], column: str, every: int
) -> list[npt.NDArray[np.float64]]:
    return [_training_values(chunk, column)[::every].copy() for chunk in chunks]
