"""Metrics of a run's predictions on some of the test rows, within groups too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlet.data.dataset import SplitColumns
from mlet.metrics import group_aucs, taken
from mlet.task import Metric, Task

#: The AUC within groups, where the data set names any (`mlet.metrics.GroupAUCs`).
GAUC = Metric("gauc", "GAUC", "higher", highest=1.0)


@dataclass(frozen=True)
class RunScores:
    """One seed of one arm.

    Attributes:
        test, rare: metrics by name, `Panel.measures` among them, on all test rows and on rare ones.
        valid: the headline metric of the kept weights on the validation split.
        steps, seconds: of training.
    """

    seed: int
    test: dict[str, float]
    rare: dict[str, float]
    valid: float
    steps: int
    seconds: float


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

    def scored_in_groups(
        self,
        predictions: npt.NDArray[np.float32],
        rows: npt.NDArray[np.bool_] | slice = slice(None),
    ) -> dict[str, float]:
        """The same and `GAUC`, where there are groups."""
        scores, groups = self.scored(predictions, rows), self.columns.groups
        if groups is None:
            return scores
        labels = self.columns.labels[self.task.label][rows]
        weights = taken(self.columns.weights, rows)
        return {
            **scores,
            GAUC.name: group_aucs(labels, predictions[rows], groups[rows], weights).mean,
        }
