"""Quality of a trained model, overall and on slices by category frequency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
    return by_count(ScoredSplit(model, data, split), field=field, edges=edges, samples=samples)


class ScoredSplit:
    """A split of a data set, and the predictions of a model for its rows.

    Args:
        model: to be scored.
        data: the prepared data set.
        split: ``train``, ``valid`` or ``test``.

    Attributes:
        columns: of the split.
        labels: (N,), those of the model's task.
    """

    def __init__(self, model: CTRModel, data: PreparedDataset, split: SplitName) -> None:
        self.data, self.split, self.task = data, split, model.task
        self.columns = data.split(split)
        self.labels = np.asarray(self.columns.labels[self.task.label])
        self._model = model

    @cached_property
    def predictions(self) -> npt.NDArray[np.float64]:
        """(N,), of the model as it is served; made when they are first asked for."""
        return served_scores(self._model, self.columns)

    def scored(self, name: str, rows: npt.NDArray[np.bool_], samples: int) -> SliceScores:
        """The scores of some rows, by a mask (N,), under a name."""
        y, p, w = self.labels[rows], self.predictions[rows], taken(self.columns.weights, rows)
        return SliceScores(
            name,
            len(y),
            int(y.sum()),
            self.task.scored(y, p, w),
            self.task.intervals(y, p, samples=samples, weights=w),
            None if w is None else float(w.sum(dtype=np.float64)),
        )


def by_count(
    scored: ScoredSplit,
    *,
    field: str | None = None,
    edges: Sequence[int] = DEFAULT_EDGES,
    samples: int = 200,
) -> list[SliceScores]:
    """What `evaluate` gives, and raises, of a split that is scored."""
    if list(edges) != sorted(set(edges)) or not edges or edges[0] < 1:
        raise ConfigError(f"slice edges must be increasing positive counts, got {list(edges)}")
    if samples < 1:
        raise ConfigError(f"bootstrap samples must be at least 1, got {samples}")
    counts = scored.data.rarest_counts(scored.split, field)
    slices = [scored.scored("all", np.ones(len(scored.labels), bool), samples)]
    return slices + [
        scored.scored(str(part), part.holds(counts), samples) for part in count_ranges(edges)
    ]
