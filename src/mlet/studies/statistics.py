"""Means over seeds with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its 95 % t-interval (None for one seed)."""

    mean: float
    margin: float | None

    def __str__(self) -> str:
        """Four decimals, as AUC and logloss are read."""
        return f"{self.mean:.4f}{self._plus_minus}"

    def signed(self) -> str:
        """The same with an explicit sign, as differences are read."""
        return f"{self.mean:+.4f}{self._plus_minus}"

    @property
    def _plus_minus(self) -> str:
        return "" if self.margin is None else f" ±{self.margin:.4f}"


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Student's t-interval of the mean of a few values.

    Raises:
        ValueError: there are no values.
    """
    # Imported on use: loading scipy.stats takes longer than most commands.
    from scipy import stats

    if not values:
        raise ValueError("no values to average")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None)
    quantile = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return Estimate(mean, quantile * float(np.std(values, ddof=1)) / len(values) ** 0.5)
