"""Progressive validation: trained on the past, scored on what comes next, then trained on that too.

It is how click models are used, and the honest test of a data set with time: every block of rows is
scored by a model that has seen all rows before it and none after (Blum, Kalai and Langford 1999,
doi 10.1145/307400.307439).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mlet.data import Batch, BatchLoader, PreparedDataset
from mlet.data.dataset import SplitColumns
from mlet.errors import ConfigError
from mlet.models import CTRModel, build_model
from mlet.training import RunConfig
from mlet.training.inner_dims import with_inner_dims
from mlet.training.optimizers import Optimizers
from mlet.training.processes import Processes
from mlet.training.start import start_from_co_occurrence
from mlet.training.unknown import UnknownRows


@dataclass(frozen=True)
class Progress:
    """Progressive scores of one run.

    Attributes:
        valid, test: the task's metrics over all rows of the split, each scored before it was
            trained on.
        blocks: the headline metric of every block of the test split, in order; NaN is null.
    """

    valid: dict[str, float]
    test: dict[str, float]
    blocks: list[float | None]


def progress(config: RunConfig, block_rows: int) -> Progress | None:
    """Train a model on the training rows, in ``epochs`` shuffled passes; then go through validation
    and test rows in their order, block by block: score, then train once.

    What is known from the start (vocabularies, co-occurrences) is of the training rows alone.

    Args:
        config: of the run; its early stopping is not used, since there is nothing to stop by.
        block_rows: rows that are scored before any of them is trained on.

    Returns:
        None if the loss or the predictions became NaN or infinite.

    Raises:
        ConfigError: the data set was split at random, so that its rows have no order.
    """
    config = with_inner_dims(config)
    data = PreparedDataset(config.data)
    if data.schema.split_by == "random":
        raise ConfigError(
            f"{data.root} was split at random: prepare it with --split time, from a file in the "
            f"order of time, to score rows that come after those trained on"
        )
    settings = config.training
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model = build_model(config.model, data.schema).to(settings.device)
    model.task.check_weights(data.schema.weighted)
    if config.model.init == "co_occurrence":
        start_from_co_occurrence(model, data)
    optimizers = Optimizers(config.optimizer, model, settings.batch_size)

    def learn(batch: Batch) -> bool:
        batch = batch.to(settings.device)
        labels = batch.labels[model.task.label]
        loss = model.task.batch_loss(model(batch), labels, batch.weights)
        if not math.isfinite(loss.item()):
            return False
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()
        return True

    loader = BatchLoader(data.split("train"), settings.batch_size, settings.seed)
    for epoch in range(settings.epochs):
        if not all(learn(batch) for batch in loader.epoch(epoch)):
            return None
    UnknownRows(model, data, Processes()).fill()
    scores: dict[str, dict[str, float]] = {}
    blocks: list[float | None] = []
    for name in ("valid", "test"):
        columns = data.split(name)
        parts, blocks = [], []
        for block in _blocks(columns, settings.batch_size, block_rows):
            found = _predicted(model, block, settings.device)
            if not np.isfinite(found).all() or not all(map(learn, block)):
                return None
            labels = np.concatenate([batch.labels[model.task.label] for batch in block])
            weights = [batch.weights for batch in block if batch.weights is not None]
            value = model.task.scored(labels, found, np.concatenate(weights) if weights else None)[
                model.task.headline.name
            ]
            blocks.append(None if math.isnan(value) else value)
            parts.append(found)
        labels = np.asarray(columns.labels[model.task.label])
        scores[name] = model.task.scored(labels, np.concatenate(parts), columns.weights)
    return Progress(scores["valid"], scores["test"], blocks)


def _blocks(columns: SplitColumns, batch_size: int, rows: int) -> Iterator[list[Batch]]:
    """Batches in order, gathered to blocks of at least so many rows but for the last."""
    block: list[Batch] = []
    size = 0
    for batch in BatchLoader(columns, batch_size).epoch():
        block.append(batch)
        size += len(batch.ids)
        if size >= rows:
            yield block
            block, size = [], 0
    if block:
        yield block


@torch.no_grad()
def _predicted(model: CTRModel, block: list[Batch], device: str) -> npt.NDArray[np.float64]:
    """Predictions for a block, by the model as it is."""
    model.eval()
    found = [model.task.predictions(model(batch.to(device)).double()).cpu() for batch in block]
    model.train()
    return torch.cat(found).numpy()
