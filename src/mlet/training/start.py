"""Where tables start that are to start from what is known before training."""

from __future__ import annotations

import torch

from mlet.data import PreparedDataset
from mlet.data.co_occurrence import co_occurrence_vectors
from mlet.data.prepare import Report
from mlet.models import CTRModel
from mlet.nn.stacked_tables import StackedTables

#: Length of a row at the start. Measured on `debdeps` (docs/results.md): 0.1 to 1 are alike.
ROW_NORM = 0.3


@torch.no_grad()
def start_from_co_occurrence(
    model: CTRModel,
    data: PreparedDataset,
    seed: int,
    report: Report = lambda what, done, total: None,
) -> None:
    """Fill the rows of a model's tables, W2 of two-layer ones, with `co_occurrence_vectors`.

    Projections stay as they were drawn. Tables of linear parts are left alone.
    """
    tables = [part for part in model.embedding.modules() if isinstance(part, StackedTables)]
    for width in sorted({table.stacked.shape[1] for table in tables}):
        vectors = co_occurrence_vectors(data, width, seed=seed, report=report)
        for table in tables:
            if table.stacked.shape[1] == width:
                for name in table.sizes:
                    table.rows_of(name).copy_(ROW_NORM * table.init_scale * vectors[name])
