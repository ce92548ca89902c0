"""Dense features as a model takes them: one function for preparation and for rows to be scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data.schema import DenseSchema
from mlet.data.source import dense_column
from mlet.errors import DataError


def scaled_dense(frame: pl.DataFrame, entries: Sequence[DenseSchema]) -> npt.NDArray[np.float32]:
    """(N, D): every feature as its entry says; what is missing is 0.

    Raises:
        DataError: a scaled value is beyond float32.
    """
    if not entries:
        return np.empty((len(frame), 0), np.float32)
    expressions = [_scaling(entry) for entry in entries]
    values = frame.select(expressions).to_numpy()
    for place, entry in enumerate(entries):
        if entry.quantiles is not None:
            column = frame[dense_column(entry.name)]
            ranks = _ranks(column.drop_nulls().to_numpy(), np.array(entry.quantiles))
            values = values if values.flags.writeable else values.copy()
            values[column.is_not_null().to_numpy(), place] = 2 * ranks - 1
    infinite = ~np.isfinite(values)
    if infinite.any():
        name = entries[int(np.argwhere(infinite)[0, 1])].name
        raise DataError(
            f"dense feature {name!r} has values too large for float32; correct them, or prepare "
            f"and train with the scale 'log'"
        )
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
