"""What one weight for each category knows: the check for labels that leak into a random split.

Where negatives are drawn at a fixed number for each positive and the finished rows are split at
random, the share of a category's positives that went into training is missing from the test rows:
its click rate there mirrors that in training. A model that knows nothing but those rates then does
worse on test rows than one that knows nothing at all, and every comparison of models that learn
them, more or less well, is of that artefact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from mlet.data import Batch, BatchLoader, PreparedDataset
from mlet.data.identity import fingerprint
from mlet.data.prepare import Report
from mlet.errors import RunError
from mlet.models import ModelConfig, build_model
from mlet.reading import read_sealed, write_sealed
from mlet.task import Task
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.optimizers import Optimizers

_EPOCHS, _LEARNING_RATE = 2, 0.1


@dataclass(frozen=True)
class BiasOnly:
    """The headline metric on the test split of a data set.

    Attributes:
        value: of a logistic regression on the categories, two passes of Adagrad.
        low, high: 95 % interval of that over resampled rows.
        constant: of one prediction for all rows.
    """

    value: float
    low: float
    high: float
    constant: float

    def mirrors(self, task: Task) -> bool:
        """Whether it is far beyond noise worse than knowing nothing: click rates are mirrored."""
        quality = task.headline.quality
        # Four standard deviations: many data sets are asked, and rates are learnt from noise too.
        return quality(self.constant) - quality(self.value) > self.high - self.low

    def sentence(self, dataset: str, task: Task) -> str:
        """What it says."""
        label = task.headline.label
        if self.mirrors(task):
            return (
                f"{dataset}: beware, a model that knows but the click rates of categories has test "
                f"{label} {self.value:.4f}, worse than the {self.constant:.4f} of knowing nothing: "
                f"rates in the test rows mirror those in training, as where negatives were drawn "
                f"for each positive before a random split. Split positives first; what is found "
                f"here says little about models."
            )
        return f"{dataset}: the click rates of categories alone give test {label} {self.value:.4f}."


def bias_only(
    data: PreparedDataset, task: Task, training: TrainingConfig, file: Path, report: Report
) -> BiasOnly:
    """Train and score the model, or read what was found before of the same data.

    Args:
        data: what the study is on.
        task: of its models.
        training: whose batch size and threads are used.
        file: where the numbers are kept.
        report: told of progress.
    """
    known = {"data": fingerprint(data.schema), "batch_size": training.batch_size}
    try:
        values = read_sealed(file, RunError, "it is made again")
        if values.pop("of", None) == known:
            return TypeAdapter(BiasOnly).validate_python(values)
    except (RunError, ValidationError):
        pass
    found = _train(data, task, training, report)
    write_sealed(file, {**asdict(found), "of": known})
    return found


def _train(data: PreparedDataset, task: Task, training: TrainingConfig, report: Report) -> BiasOnly:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(training.threads or threads)
    try:
        schema = data.schema.model_copy(update={"dense": []})
        model = build_model(ModelConfig.parse({"name": "lr"}, "bias-only model"), schema)
        config = OptimizersConfig.same("adagrad", _LEARNING_RATE)
        optimizers = Optimizers(config, model, training.batch_size)
        loader = BatchLoader(data.split("train"), training.batch_size, seed=0)
        for epoch in range(_EPOCHS):
            for step, batch in enumerate(_of_categories(loader, epoch)):
                done = epoch * len(loader) + step
                report("a model of click rates alone", done, _EPOCHS * len(loader))
                loss = task.batch_loss(model(batch), batch.labels[task.label], batch.weights)
                optimizers.zero_grad()
                loss.backward()
                optimizers.step()
        test = data.split("test")
        with torch.no_grad():
            outputs = [model(batch) for batch in _of_categories(BatchLoader(test, 8_192))]
    finally:
        torch.set_num_threads(threads)
    predictions = task.predictions(torch.cat(outputs).double()).numpy()
    labels, name = np.asarray(test.labels[task.label]), task.headline.name
    interval = task.intervals(labels, predictions, weights=test.weights)[name]
    train = data.split("train")
    if train.weights is None:
        rate = np.mean(train.labels[task.label])
    else:
        rate = np.average(train.labels[task.label], weights=train.weights.astype(np.float64))
    nothing = np.full(len(labels), rate)
    value, constant = (task.scored(labels, p, test.weights)[name] for p in (predictions, nothing))
    return BiasOnly(value, *interval, constant)


def _of_categories(loader: BatchLoader, epoch: int = 0) -> Iterator[Batch]:
    """Batches without their dense features."""
    for batch in loader.epoch(epoch):
        yield batch._replace(dense=batch.dense[:, :0])
