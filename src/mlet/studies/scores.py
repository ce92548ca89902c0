"""Metrics of a run's predictions on some of the test rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlet.data.dataset import SplitColumns
from mlet.metrics import taken
from mlet.task import Task


@dataclass(frozen=True)
class TestRows:
    """The rows that predictions are scored on.

    Attributes:
        columns: of the test split.
        task: whose metrics are asked for.
    """

    columns: SplitColumns
    task: Task

    def scored(
        self,
        predictions: npt.NDArray[np.float32],
        rows: npt.NDArray[np.bool_] | slice = slice(None),
    ) -> dict[str, float]:
        """Metrics by name, of predictions (N,) on some rows; weighted where rows are."""
        labels = np.asarray(self.columns.labels[self.task.label])[rows]
        return self.task.scored(labels, predictions[rows], taken(self.columns.weights, rows))
