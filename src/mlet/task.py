"""What a model is trained for: a loss, predictions, and the metrics that say how good they are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

from mlet import metrics
from mlet.errors import ConfigError
from mlet.metrics import Floats, Interval
from mlet.registry import Registry

Value = TypeVar("Value", float, Floats)


@dataclass(frozen=True)
class Metric:
    """A number that says how good predictions are.

    Attributes:
        name: as in files: ``auc``.
        label: as in tables and figures: ``AUC``.
        better: which way it improves; None where its best value lies in between.
        unit: of its values, if they have one.
        highest: no value is above it.
    """

    name: str
    label: str
    better: Literal["higher", "lower"] | None
    unit: str = ""
    highest: float = math.inf

    @property
    def gain_label(self) -> str:
        """As at the axis of differences: ``logloss gain (nats)``."""
        return f"{self.label} gain" + (f" ({self.unit})" if self.unit else "")

    def quality(self, value: Value) -> Value:
        """A value, or an array of them, so turned that more is better, however it improves."""
        return -value if self.better == "lower" else value


class Task(ABC):
    """What one output of a model is for.

    Attributes:
        label: the name of the labels it is compared with.
        headline: the metric by which weights and settings are chosen, arms compared, reductions
            read off.
        row_loss: the mean of `row_losses`.
        others: further metrics that `score` gives.
        weighted: whether `loss` and `score` take the weights of rows, (B,) and (N,), as a third
            argument, given where the data set has some: means become weighted ones. In training
            weights are in units of their mean over the training rows, so that the loss of a batch
            is ``mean(weights * losses)``.
    """

    label: ClassVar[str] = "label"
    headline: ClassVar[Metric]
    row_loss: ClassVar[Metric]
    others: ClassVar[tuple[Metric, ...]] = ()
    weighted: ClassVar[bool] = False

    @property
    def measures(self) -> tuple[Metric, ...]:
        """The metrics by which arms of a study are compared: headline first."""
        return tuple(dict.fromkeys((self.headline, self.row_loss)))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics of `score`, in its order."""
        return (*self.measures, *self.others)

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The mean training loss, a scalar, of a model's outputs (B,) and labels (B,)."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What is scored and served, (B,), of a model's outputs (B,)."""

    @abstractmethod
    def score(
        self,
        labels: npt.ArrayLike,
        predictions: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
    ) -> dict[str, float]:
        """Every metric by name, of predictions (N,); NaN where it is undefined."""

    @abstractmethod
    def row_losses(self, labels: npt.ArrayLike, predictions: npt.ArrayLike) -> Floats:
        """The loss of each row (N,)."""

    def batch_loss(self, outputs: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """`loss`, with the weights of rows where there are some.

        Raises:
            ConfigError: there are, and the task takes none; or outputs are not one a row.
        """
        if outputs.shape != labels.shape:
            raise ConfigError(
                f"the model's outputs have the shape {tuple(outputs.shape)} for {len(labels)} "
                f"rows: its forward must return one number a row, ({len(labels)},), as "
                f"outputs.squeeze(1) is of a last layer of one"
            )
        if weights is None:
            return self.loss(outputs, labels)
        self.check_weights(True)
        return self.loss(outputs, labels, weights)

    def scored(
        self,
        labels: npt.ArrayLike,
        predictions: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
    ) -> dict[str, float]:
        """`score`, with the weights of rows where there are some. Raises as `batch_loss`."""
        if weights is None:
            return self.score(labels, predictions)
        self.check_weights(True)
        return self.score(labels, predictions, weights)

    def check_weights(self, given: bool) -> None:
        """Refuse weights, where they are given and the task takes none.

        Raises:
            ConfigError: so it is.
        """
        if given and not self.weighted:
            raise ConfigError(
                f"task {type(self).__name__} takes no weights, which the rows of the data set "
                f"have: let its loss and score take them, and say weighted = True, or prepare the "
                f"data without 'weight'"
            )

    def resampled(
        self,
        labels: npt.ArrayLike,
        predictions: npt.ArrayLike,
        *,
        samples: int,
        seed: int = 0,
        weights: npt.ArrayLike | None = None,
    ) -> Floats:
        """The metrics of ``samples`` resamples of the rows: (samples, M), in their order.

        The resamples depend on the number of rows and on ``seed`` only, so those of two models on
        the same rows are paired: subtract them for the distribution of a difference.
        """
        y, p = np.asarray(labels), np.asarray(predictions)
        w = None if weights is None else np.asarray(weights, np.float64)
        draws = np.full((samples, len(self.metrics)), np.nan)
        generator = np.random.default_rng(seed)
        for draw in draws if len(y) else ():
            rows = generator.integers(len(y), size=len(y))
            scores = self.scored(y[rows], p[rows], metrics.taken(w, rows))
            draw[:] = [scores[metric.name] for metric in self.metrics]
        return draws

    def intervals(
        self,
        labels: npt.ArrayLike,
        predictions: npt.ArrayLike,
        *,
        samples: int = 200,
        confidence: float = 0.95,
        seed: int = 0,
        weights: npt.ArrayLike | None = None,
    ) -> dict[str, Interval]:
        """Percentile intervals of each metric, from resampling rows with replacement."""
        draws = self.resampled(labels, predictions, samples=samples, seed=seed, weights=weights)
        return {
            metric.name: metrics.percentile_interval(values, confidence)
            for metric, values in zip(self.metrics, draws.T, strict=True)
        }


#: Task classes by name; called without arguments.
TASKS: Registry[type[Task]] = Registry("task", "mlet.tasks", has="row_losses")


@TASKS.register("binary")
class Binary(Task):
    """Whether something happens, as a click: outputs are logits, predictions probabilities."""

    headline = Metric("auc", "AUC", "higher", highest=1.0)
    row_loss = Metric("logloss", "logloss", "lower", unit="nats")
    others = (Metric("calibration", "calibration", None),)
    weighted = True

    def loss(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The mean negative log-likelihood, in nats."""
        return F.binary_cross_entropy_with_logits(outputs, labels, weight=weights)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probabilities."""
        return outputs.sigmoid()

    def score(
        self,
        labels: npt.ArrayLike,
        predictions: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
    ) -> dict[str, float]:
        """See `mlet.metrics.Scores`."""
        return metrics.score(labels, predictions, weights)._asdict()

    def row_losses(self, labels: npt.ArrayLike, predictions: npt.ArrayLike) -> Floats:
        """The negative log-likelihoods, in nats."""
        return metrics.row_losses(labels, predictions)

    def resampled(
        self,
        labels: npt.ArrayLike,
        predictions: npt.ArrayLike,
        *,
        samples: int,
        seed: int = 0,
        weights: npt.ArrayLike | None = None,
    ) -> Floats:
        """As of any task, sorting the rows but once."""
        draws = metrics.resampled_scores(
            labels, predictions, samples=samples, seed=seed, weights=weights
        )
        return draws[:, [metrics.Scores._fields.index(metric.name) for metric in self.metrics]]
