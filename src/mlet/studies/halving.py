"""Successive halving: a trial that falls behind the arm's own earlier ones is not trained on.

Jamieson and Talwalkar 2016 (arXiv 1502.07943), in the asynchronous form of Li et al. 2020 (arXiv
1810.05934), by Optuna's pruner. At a *rung*, a number of validations, a trial goes on if the best
headline metric that it has had so far is among the best ``1 / factor`` of those that trials of the
same arm had had there, itself included; with fewer than ``factor`` of them, if it is the best. The
best so far, since that is what a run keeps: where models overfit, the latest says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from mlet.task import Task
from mlet.training import RunDirectory
from mlet.training.observer import SilentObserver


class Pruned(Exception):
    """The trial that is being trained is not worth going on with."""


@dataclass(frozen=True)
class Halving:
    """The rule for one trial.

    Attributes:
        factor: η; the rungs are ``first``, ``first · η``, ``first · η²``, … validations.
        first: validations before the first rung, it included.
        before: what the arm's earlier trials had at each of their validations, higher is better.
    """

    factor: int
    first: int
    before: Sequence[Sequence[float]] = field(default=(), repr=False)

    def gives_up(self, found: Sequence[float]) -> bool:
        """Whether a trial that has had these at its validations so far is to end here."""
        # Imported on use: it takes longer to load than most commands take to run.
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = optuna.pruners.SuccessiveHalvingPruner(
            min_resource=self.first, reduction_factor=self.factor
        )
        study = optuna.create_study(direction="maximize", pruner=pruner)
        # The pruner goes by what it noted itself when others were at a rung: they are told again.
        for values in self.before:
            _told(study.ask(), values)
        return _told(study.ask(), found)


def _told(trial: Any, values: Sequence[float]) -> bool:
    """Whether the pruner would end a trial at the last of these values."""
    prune = False
    for place, best in enumerate(accumulate(values, max)):
        trial.report(best, place + 1)
        prune = trial.should_prune()
    return prune


class HalvingObserver(SilentObserver):
    """Ends a run by `Pruned` where the rule says so."""

    def __init__(self, halving: Halving, run: RunDirectory, task: Task) -> None:
        self._halving, self._run, self._task = halving, run, task
        self._steps: float = float("inf")

    def start(self, task: Task, steps: int, done: int) -> None:
        """Know where the run ends by itself."""
        self._steps = steps

    def validation(self, record: dict[str, float]) -> None:
        """Compare what the run has had so far, before it was interrupted too."""
        at_its_end = record["step"] >= self._steps  # nothing is saved any more
        if not at_its_end and self._halving.gives_up(qualities(self._run, self._task)):
            raise Pruned


def qualities(run: RunDirectory, task: Task) -> list[float]:
    """The headline metric at every validation of a run so far, higher is better."""
    headline = task.headline
    return [headline.quality(record[f"valid_{headline.name}"]) for record in run.metrics()]
