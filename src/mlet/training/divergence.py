"""Where a loss that is NaN or infinite comes from, and what to do about it."""

from __future__ import annotations

import torch
from torch import Tensor

from mlet.data import Batch
from mlet.data.schema import DatasetSchema
from mlet.errors import DataError, MletError, TrainingError
from mlet.models import CTRModel
from mlet.training.config import OptimizersConfig


def explained(
    what: str, batch: Batch, schema: DatasetSchema, model: CTRModel, optimizer: OptimizersConfig
) -> MletError:
    """The error of a step whose loss is not finite.

    Args:
        what: which loss that is.
        batch: its rows.
        schema: of the data set that they are from.
        model: as it was before the step.
        optimizer: what trains it.
    """
    what = f"{what}; it comes from"
    bad = _first_bad_column(batch.dense)
    if bad is not None:
        name = schema.dense[bad].name
        return DataError(f"{what} the data: dense feature {name!r}; prepare the data set again")
    with torch.no_grad():
        bad = _first_bad_column(model.embedding(batch.ids, batch.bags))
    fields = model.embedding.fields
    place = (
        "the dense layers"
        if bad is None
        else f"the embedding vectors of field {fields[bad].name!r}"
    )
    return TrainingError(f"{what} {place}; {lower_rates(optimizer)}")


def lower_rates(optimizer: OptimizersConfig) -> str:
    """What to do about a run that diverged."""
    return (
        f"lower optimizer.tables.learning_rate ({optimizer.tables.learning_rate}) or "
        f"optimizer.dense.learning_rate ({optimizer.dense.learning_rate})"
    )


def _first_bad_column(values: Tensor) -> int | None:
    """The first column of (B, C, …) with a value that is NaN or infinite."""
    finite = torch.isfinite(values).movedim(1, 0).flatten(1).all(dim=1)
    places = torch.nonzero(~finite).flatten()
    return int(places[0]) if len(places) else None
