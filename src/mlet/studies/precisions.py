"""What a trained model's tables give at every precision, on validation: cheap, as nothing is
trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlet.data import PreparedDataset
from mlet.errors import ConversionError
from mlet.export import load_collapsed
from mlet.nn.compression import Precision
from mlet.training import RunDirectory
from mlet.training.predict import predict


def precision_points(
    path: Path, data: Path, precisions: Sequence[Precision]
) -> tuple[dict[str, Any], ...]:
    """Size and validation scores of a finished run's model at some precisions.

    One that the tables cannot be kept in, as beyond the range of float16, is left out.

    Args:
        path: of the run.
        data: its data set.
        precisions: of the tables.

    Returns:
        For each its ``precision``; ``bytes`` of the tables and ``model_bytes`` of all that is
        served; ``scores``, the task's metrics by name.
    """
    if not precisions:
        return ()
    columns = PreparedDataset(data).split("valid")
    model, _, _ = load_collapsed(RunDirectory(path).model_file)
    labels = np.asarray(columns.labels[model.task.label])
    points = []
    for precision in precisions:
        try:
            served = model if precision == "float32" else model.collapse(precision)
        except ConversionError:
            continue
        points.append(
            {
                "precision": precision,
                "bytes": served.table_bytes(),
                "model_bytes": sum(tensor.nbytes for tensor in served.state_dict().values()),
                "scores": model.task.scored(labels, predict(served, columns), columns.weights),
            }
        )
    return tuple(points)
