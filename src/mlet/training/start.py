"""Where models start that are to start from what is known before training."""

from __future__ import annotations

from pathlib import Path

import torch

from mlet.data import PreparedDataset
from mlet.data.co_occurrence import kept_co_occurrence_vectors
from mlet.data.identity import check_data
from mlet.data.prepare import Report
from mlet.errors import RunError
from mlet.export import load_collapsed
from mlet.models import CTRModel
from mlet.nn.factored import block_rows
from mlet.nn.stacked_tables import StackedTables
from mlet.table_files import current_files, new_table
from mlet.training.config import RunConfig
from mlet.training.grow import grow_model
from mlet.training.optimizers import Optimizers
from mlet.training.run import RunDirectory
from mlet.training.weights import copy_besides

#: Length of a row at the start, in the order of those that rows have after training.
ROW_NORM = 0.3


def begin(
    config: RunConfig,
    model: CTRModel,
    optimizers: Optimizers,
    data: PreparedDataset,
    run: RunDirectory,
) -> None:
    """Fill tables, or all weights, with what training is to begin with."""
    if config.grow is not None:
        grow_model(config, model, optimizers, data, run)
    elif config.start is not None:
        start_from_run(model, data, config.start)
    elif config.model.init == "co_occurrence":
        start_from_co_occurrence(model, data)


@torch.no_grad()
def start_from_co_occurrence(
    model: CTRModel,
    data: PreparedDataset,
    report: Report = lambda what, done, total: None,
) -> None:
    """Fill W2 of a model's two-layer tables with `kept_co_occurrence_vectors`; in a model without
    such tables, the rows of its ordinary ones.

    Projections stay as they were drawn. Tables of linear parts are left alone.
    """
    tables = [part for part in model.embedding.modules() if isinstance(part, StackedTables)]
    tables = [table for table in tables if table.inner_dim is not None] or tables
    for width in sorted({table.stacked.shape[1] for table in tables}):
        vectors = kept_co_occurrence_vectors(data, width, report=report)
        for table in tables:
            if table.stacked.shape[1] == width:
                for name in table.sizes:
                    if vectors[name].any():  # not of the only field, which goes with no other
                        rows = _means(
                            vectors[name], model.embedding.rows.of(name), table.sizes[name]
                        )
                        rows = table.own_of(name, rows)
                        own, count = table.rows_of(name), block_rows(width)
                        for low in range(0, len(own), count):
                            block = ROW_NORM * table.init_scale * rows[low : low + count]
                            own[low : low + count] = block


def _means(vectors: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """The mean vector of the categories that share a row, for each of ``count`` rows."""
    if count == len(vectors):  # nothing is shared
        return vectors
    sums = new_table((count, vectors.shape[1]), vectors.dtype, current_files()).zero_()
    sums.index_add_(0, rows, vectors)
    return sums.div_(torch.bincount(rows, minlength=count).clamp(min=1).unsqueeze(1))


@torch.no_grad()
def start_from_run(model: CTRModel, data: PreparedDataset, start: Path) -> None:
    """Fill a model with the weights of a finished run, or of a collapsed model file.

    Raises:
        RunError: it cannot be read, is of other data, or of a model that differs in more than how
            its tables are kept.
    """
    file = RunDirectory(start).model_file if start.is_dir() else start
    source, _, schema = load_collapsed(file)
    check_data(schema, data, start)
    copy_besides(
        ["embedding"],
        model,
        source,
        origin=f"start: the model of {start}",
        remedy="only how tables are kept may differ",
    )
    try:
        for name in model.embedding.table_names:
            model.embedding.start_from(name, source.embedding.table(name))
    except ValueError as error:
        raise RunError(
            f"start: the weights of {start} do not fit: {error}; give every field the d that it "
            f"had, or train anew"
        ) from None
