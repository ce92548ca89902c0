"""Predictions of a model on a split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from mlet.data import Batch, BatchLoader
from mlet.data.dataset import SplitColumns
from mlet.models import CTRModel
from mlet.nn import Bags
from mlet.training.alike import SERVED_ROWS, alike

_BATCH_ROWS = 8_192


@torch.no_grad()
def predict(
    model: CTRModel,
    columns: SplitColumns,
    *,
    device: str = "cpu",
    max_rows: int | None = None,
    fetch: Callable[[Batch | None], None] | None = None,
    most_rows: int = 0,
) -> npt.NDArray[np.float64]:
    """Predictions of the model's task (N,) in row order, or of the first ``max_rows`` rows.

    The model's mode is left as it was.

    Args:
        model, columns, device, max_rows: what predicts, what for, where, and how much of it.
        fetch: to be called with each batch before the model is, and with None so often that it has
            been called as often as with ``most_rows`` rows: where several processes predict
            together, each for rows of its own.
        most_rows: that any of them has.
    """
    training = model.training
    model.eval()
    parts: list[npt.NDArray[np.float64]] = [np.empty(0)]
    done = 0
    for batch in BatchLoader(columns, _BATCH_ROWS).epoch():
        if fetch is not None:
            fetch(batch)
        parts.append(model.task.predictions(model(batch.to(device)).double()).cpu().numpy())
        done += len(parts[-1])
        if max_rows is not None and done >= max_rows:
            break
    if fetch is not None:
        for _ in range(-(-most_rows // _BATCH_ROWS) - len(parts) + 1):
            fetch(None)
    model.train(training)
    return np.concatenate(parts)[:max_rows]


@torch.no_grad()
def served_scores(model: CTRModel, columns: SplitColumns) -> npt.NDArray[np.float64]:
    """Predictions (N,) of a model as it is served, in row order.

    How a matrix product rounds depends on how many rows it has, and on where a row is among them.
    Here all batches have the same number, the last one filled up, and rows lie `alike`, so that a
    row has the same score, to the bit, whatever rows are scored with it.
    """
    model.eval()
    parts: list[npt.NDArray[np.float64]] = [np.empty(0)]
    for batch in BatchLoader(columns, SERVED_ROWS).epoch():
        rows = len(batch.dense)
        with alike():
            outputs = model(_filled(batch, SERVED_ROWS)).double()
        parts.append(model.task.predictions(outputs).numpy()[:rows])
    return np.concatenate(parts)


def _filled(batch: Batch, rows: int) -> Batch:
    """A batch with rows of unknown categories and empty bags behind its own, to ``rows``."""
    more = rows - len(batch.dense)
    bags = {}
    for name, (values, offsets) in batch.bags.items():
        bags[name] = Bags(values, torch.cat([offsets, offsets[-1:].expand(more)]))
    return Batch(
        batch.labels,
        torch.nn.functional.pad(batch.dense, (0, 0, 0, more)),
        torch.nn.functional.pad(batch.ids, (0, 0, 0, more)),
        bags,
        batch.weights,
    )
