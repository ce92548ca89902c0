"""Predictions of a model on a split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from mlet.data import BatchLoader
from mlet.data.dataset import SplitColumns
from mlet.models import CTRModel

_BATCH_ROWS = 8_192


@torch.no_grad()
def predict(
    model: CTRModel, columns: SplitColumns, *, device: str = "cpu", max_rows: int | None = None
) -> npt.NDArray[np.float64]:
    """Predictions of the model's task (N,) in row order, or of the first ``max_rows`` rows.

    The model's mode is left as it was.
    """
    training = model.training
    model.eval()
    parts: list[npt.NDArray[np.float64]] = []
    done = 0
    for batch in BatchLoader(columns, _BATCH_ROWS).epoch():
        parts.append(model.task.predictions(model(batch.to(device)).double()).cpu().numpy())
        done += len(parts[-1])
        if max_rows is not None and done >= max_rows:
            break
    model.train(training)
    return np.concatenate(parts)[:max_rows]
