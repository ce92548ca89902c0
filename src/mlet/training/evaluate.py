"""Quality of a trained model, overall and on slices by category frequency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlet.data import PreparedDataset
from mlet.data.frequency import DEFAULT_EDGES, count_ranges
from mlet.data.schema import SplitName
from mlet.errors import ConfigError
from mlet.metrics import Interval, taken
from mlet.models import CTRModel
from mlet.training.predict import served_scores


@dataclass(frozen=True)
class SliceScores:
    """Scores on some rows of a split.

    Attributes:
        name: ``all``, or the range of training counts.
        rows, clicks: in the slice.
        weight: what its rows count for in all; None where all count alike.
        scores: the metrics of the model's task by name; NaN where undefined.
        intervals: of each, from a bootstrap over rows.
    """

    name: str
    rows: int
    clicks: int
    scores: dict[str, float]
    intervals: dict[str, Interval]
    weight: float | None = None


def evaluate(
    model: CTRModel,
    data: PreparedDataset,
    *,
    split: SplitName = "test",
    field: str | None = None,
    edges: Sequence[int] = DEFAULT_EDGES,
    samples: int = 200,
) -> list[SliceScores]:
    """Score a model on a split and on its slices by frequency.

    A row belongs to the slice of its rarest category's training count, or of ``field``'s alone.

    Args:
        model: to be scored.
        data: the prepared data set.
        split: ``train``, ``valid`` or ``test``.
        field: count this field's categories only.
        edges: increasing counts where a new slice begins; below the first is a slice too.
        samples: bootstrap samples for the intervals.

    Raises:
        ConfigError: the edges do not increase, or ``samples`` is below 1.
        DataError: no field of that name, or the data set is damaged.
    """
    if list(edges) != sorted(set(edges)) or not edges or edges[0] < 1:
        raise ConfigError(f"slice edges must be increasing positive counts, got {list(edges)}")
    if samples < 1:
        raise ConfigError(f"bootstrap samples must be at least 1, got {samples}")
    task = model.task
    columns = data.split(split)
    labels = np.asarray(columns.labels[task.label])
    counts = data.rarest_counts(split, field)
    probabilities = served_scores(model, columns)

    def scored(name: str, rows: npt.NDArray[np.bool_]) -> SliceScores:
        y, p, w = labels[rows], probabilities[rows], taken(columns.weights, rows)
        return SliceScores(
            name,
            len(y),
            int(y.sum()),
            task.scored(y, p, w),
            task.intervals(y, p, samples=samples, weights=w),
            None if w is None else float(w.sum(dtype=np.float64)),
        )

    slices = [scored("all", np.ones(len(labels), bool))]
    return slices + [scored(str(part), part.holds(counts)) for part in count_ranges(edges)]
