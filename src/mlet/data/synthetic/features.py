"""What rows are drawn from: a Zipf law in each field, log-normal counts with some missing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlet.data.synthetic.config import SyntheticConfig

Floats = npt.NDArray[np.float64]

#: Log-normal location and scale of the dense counts, and their share of missing values.
_MEAN, _STD, _MISSING = 1.5, 1.0, 0.05


class Features(NamedTuple):
    """Of N rows.

    Attributes:
        categories: each field's, as frequency ranks (N,) int64.
        counts: each dense feature's (N,); NaN where missing.
    """

    categories: list[npt.NDArray[np.int64]]
    counts: list[Floats]


class FeatureLaw:
    """Draws the features of rows."""

    def __init__(self, config: SyntheticConfig) -> None:
        self._dense = config.dense
        self._cumulative = []
        for size in config.cardinalities:
            cumulative = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -config.zipf)
            self._cumulative.append(cumulative / cumulative[-1])

    def draw(self, generator: np.random.Generator, rows: int) -> Features:
        """Independent rows."""
        categories = [
            np.minimum(
                np.searchsorted(cumulative, generator.random(rows), side="right"),
                len(cumulative) - 1,
            )
            for cumulative in self._cumulative
        ]
        counts = []
        for _ in range(self._dense):
            count = np.floor(np.exp(_MEAN + _STD * generator.standard_normal(rows)))
            count[generator.random(rows) < _MISSING] = np.nan
            counts.append(count)
        return Features(categories, counts)


def standardised(count: Floats) -> Floats:
    """The logarithm of a dense feature in units of its law; missing counts as 0."""
    return np.asarray((np.log1p(np.nan_to_num(count, nan=0.0)) - _MEAN) / _STD, np.float64)
