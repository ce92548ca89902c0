"""The metrics of predictions that several processes have a part of, each for its own rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from mlet.metrics import CLIP, Floats, Scores, row_losses
from mlet.task import Binary, Task
from mlet.training.processes import Processes, named_failures

#: Predictions that each process tells of its own, at equal distances in their order.
_SAMPLES = 256


def scored(
    task: Task,
    labels: npt.NDArray[np.generic],
    predictions: Floats,
    weights: npt.NDArray[np.float32] | None,
    processes: Processes,
) -> dict[str, float]:
    """`mlet.task.Task.scored` of all rows, the same on all processes.

    AUC, logloss and calibration of clicks are found without anybody having all scores: predictions
    are sorted by all together, each process having a range of them. The metrics of another task
    may be anything, so that all processes get all of its predictions.
    """
    if processes.size == 1:
        return task.scored(labels, predictions, weights)
    task.check_weights(weights is not None)
    own = np.stack(
        [
            np.asarray(labels, np.float64),
            np.asarray(predictions, np.float64),
            np.ones(len(labels)) if weights is None else weights.astype(np.float64),
        ]
    )
    with named_failures():
        if type(task).score is Binary.score:
            return _of_clicks(own, processes)._asdict()
        y, p, w = np.concatenate(_of_all(own, processes), axis=1)
    return task.scored(y, p, None if weights is None else w)


def _of_clicks(own: Floats, processes: Processes) -> Scores:
    """`mlet.metrics.score` of (3, N) labels, probabilities, weights."""
    y, p, w = own
    p = np.clip(p, CLIP, 1 - CLIP)
    y, p, w = (each[np.argsort(p, kind="stable")] for each in (y, p, w))
    y, p, w = _of_range(np.stack([y, p, w]), processes)
    order = np.argsort(p, kind="stable")
    y, p, w = y[order], p[order], w[order]
    starts = (
        np.flatnonzero(np.concatenate([[True], p[1:] != p[:-1]])) if len(p) else np.empty(0, int)
    )
    clicks, others = (
        np.add.reduceat(w * each, starts) if len(p) else np.empty(0) for each in (y, 1 - y)
    )
    mine = np.array([clicks.sum(), others.sum(), w.sum(), w @ p, w @ row_losses(y, p)])
    sums = np.concatenate(_of_all(mine[:, None], processes), axis=1)
    below = sums[1, : processes.rank].sum() + np.cumsum(others) - others
    pairs = processes.sum(float(clicks @ (below + others / 2)))
    click, other, total, predicted, losses = sums.sum(axis=1)
    if not total:
        return Scores(np.nan, np.nan, np.nan)
    auc = float(pairs / (click * other)) if click and other else np.nan
    calibration = float(predicted / click) if click else np.nan
    return Scores(auc, float(losses / total), calibration)


def _of_range(rows: Floats, processes: Processes) -> Floats:
    """Of everybody's rows (3, N), sorted by the second number, those within this process' range of
    it: ranges follow one another with the processes, and hold about as many rows."""
    places = np.linspace(0, rows.shape[1] - 1, _SAMPLES).round().astype(int)
    samples = rows[1, places] if rows.shape[1] else np.empty(0)
    told = np.sort(np.concatenate(_of_all(samples[None], processes), axis=1)[0])
    cuts = told[[len(told) * rank // processes.size for rank in range(1, processes.size)]]
    ends = [0, *np.searchsorted(rows[1], cuts), rows.shape[1]]  # equal ones go the same way
    parts = [rows[:, low:high] for low, high in pairwise(ends)]
    return np.concatenate(_exchanged(parts, processes), axis=1)


def _exchanged(parts: list[Floats], processes: Processes) -> list[Floats]:
    """Give part r, (A, N), to process r; what all the others gave to this one, in their order."""
    sizes = np.concatenate(
        _of_all(np.array([[part.shape[1] for part in parts]], np.float64), processes)
    ).astype(int)
    height = parts[0].shape[0]
    theirs = [int(size) * height for size in sizes[:, processes.rank]]
    got = processes.exchange([torch.from_numpy(part) for part in parts], theirs)
    return [each.numpy().reshape(height, -1) for each in got]


def _of_all(own: Floats, processes: Processes) -> list[Floats]:
    """Those (A, N) of all processes, of different lengths."""
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(processes.size)]
    distributed.all_gather(counts, torch.tensor([own.shape[1]]))
    lengths = [int(count) for count in counts]
    padded = np.zeros((own.shape[0], max(lengths)))
    padded[:, : own.shape[1]] = own
    gathered = [torch.empty(padded.shape, dtype=torch.float64) for _ in lengths]
    distributed.all_gather(gathered, torch.from_numpy(padded))
    return [each.numpy()[:, :length] for each, length in zip(gathered, lengths, strict=True)]
