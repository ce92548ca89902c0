"""``min_count``: how many categories have rows of their own, told from the data before a run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mlet.data import PreparedDataset
from mlet.training.config import RunConfig


def with_own_rows(config: RunConfig) -> RunConfig:
    """A run's settings with what ``min_count`` comes to in each field.

    The number is what the run keeps: it means the same whatever is counted later.
    """
    model = config.model
    if model.min_count == 1 or model.own_rows:
        return config
    data = PreparedDataset(config.data)
    own = {
        field.name: own_rows(data.training_counts[field.name], model.min_count)
        for field in data.schema.vocabulary_fields
    }
    return config.model_copy(update={"model": model.model_copy(update={"own_rows": own})})


def own_rows(counts: npt.NDArray[np.int64], min_count: int) -> int:
    """The last id that was seen so often: ids are in the order of their counts. In data that
    extends other data rare ones may come before it, and keep rows of their own.

    Args:
        counts: (n,) training rows of each id; of id 0 none.
        min_count: at least 2.
    """
    often = np.flatnonzero(counts >= min_count)
    return int(often[-1]) if len(often) else 0
