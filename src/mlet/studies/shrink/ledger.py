"""The trials of a search: many at once, proposed by size and quality, confirmed by fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlet.errors import RunError
from mlet.nn.compression import PRECISIONS
from mlet.studies.ledger import Claim, Ledger
from mlet.studies.methods import SLT
from mlet.studies.shrink.points import Values, values_of
from mlet.studies.shrink.study import TWO_LAYER, ShrinkStudy, Whole
from mlet.studies.study import Arm
from mlet.studies.trials import is_final, is_running

#: Quality this many tolerances below what is asked is as bad as any.
_FAR = 20

#: Of the likely settings, the one that is as wide as the reference.
_LIKELY_EXPONENT = 0.1
#: What trials of earlier versions have of what those did not search.
_NEW = {"dim_exponent": 0.0}

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class SearchLedger(Ledger):
    """The database of a search.

    Attributes:
        wanted: for each arm, by name, the settings to be trained with every fresh seed.
    """

    _study: ShrinkStudy

    def __init__(self, study: ShrinkStudy, url: str) -> None:
        super().__init__(study, url)
        self.wanted: dict[str, list[Mapping[str, float]]] = {}

    def claim(self, arm: Arm) -> Claim | None:
        """A run of this arm that nobody trains yet; trials do not wait for one another."""
        trials = self.trials(arm)
        tuning = [trial for trial in trials if not is_final(trial)]
        if len(tuning) < self._study.tuning.trials:
            waits = arm.method != SLT and not self._reference_is_tuned()
            return None if waits else self._claim_tuning(arm, tuning)
        for setting in self.wanted.get(arm.name, []):
            for seed in self._study.fresh_seeds:
                if not any(is_final(trial, seed) and trial.params == setting for trial in trials):
                    return self._add(arm, dict(setting), seed)
        return None

    def done(self, arm: Arm) -> bool:
        """Whether nothing is left to train that is wanted, by anyone."""
        trials = self.trials(arm)
        tuned = sum(not is_final(trial) for trial in trials) >= self._study.tuning.trials
        if not tuned or any(map(is_running, trials)):
            return False
        fresh = self.fresh(arm)
        wanted = (values_of(setting) for setting in self.wanted.get(arm.name, []))
        return all(len(fresh.get(values, {})) == self._study.seeds for values in wanted)

    def fresh(self, arm: Arm) -> dict[Values, dict[int, FrozenTrial]]:
        """The runs with fresh seeds that have come to an end, by setting and seed."""
        found: dict[Values, dict[int, FrozenTrial]] = {}
        for trial in self.trials(arm):
            seed = trial.user_attrs["seed"]
            if is_final(trial) and not is_running(trial) and seed in self._study.fresh_seeds:
                # A run that was lost and trained again has two trials: the last one is it.
                found.setdefault(values_of(trial.params), {})[seed] = trial
        return found

    def finals(self, arm: Arm) -> list[FrozenTrial]:
        """The finished runs of the settings that are wanted, of all where that is not known yet:
        their models are kept."""
        wanted = self.wanted.get(arm.name)
        return [
            trial
            for trial in self.trials(arm)
            if is_final(trial)
            and trial.state.name == "COMPLETE"
            and (wanted is None or trial.params in wanted)
        ]

    def _reference_is_tuned(self) -> bool:
        tuning = self.tuning(self._study.arms()[0])
        return len(tuning) >= self._study.tuning.trials and not any(map(is_running, tuning))

    def reference(self) -> FrozenTrial:
        """The best trial of the reference.

        Raises:
            RunError: it cannot be trained.
        """
        trials = self.tuning(self._study.arms()[0])
        works: list[FrozenTrial] = [t for t in trials if t.state.name == "COMPLETE"]
        if not works:
            reasons = [reason for t in trials if (reason := t.user_attrs.get("reason"))]
            raise RunError(
                f"the reference of d = {self._study.reference_dim} cannot be trained: "
                f"{reasons[0] if reasons else 'every trial was given up'}"
            )
        return max(works, key=lambda trial: float(trial.value or 0.0))

    def _spread(self, arm: Arm) -> list[dict[str, float]]:
        """The settings that are tried first: of a search half of its trials.

        What is tuned of the reference, too, is within a factor of two of what was best for it; what
        is searched is spread evenly, but for three likely settings at the beginning.
        """
        points = super()._spread(arm)
        if arm.method == SLT:
            return points
        known, space = self.reference().params, self._space(arm)
        for point in points:
            for name, best in known.items():
                low, high = space[name].low, space[name].high
                share = math.log(point[name] / low) / math.log(high / low)
                point[name] = min(max(best * 2 ** (2 * share - 1), low), high)
        widest = self._study.reference_dim
        # The reference's own d for all fields it is itself, if there is one layer.
        dims = {max(1, widest // 2): 0.0, max(1, widest // 4): 0.0, widest: _LIKELY_EXPONENT}
        plain: dict[str, float] = dict.fromkeys(("co_occurrence", "table_bias"), 0)
        plain |= {"min_count": 1, "rare_rows": 1, "dim_exponent": 0.0}
        if arm.method == TWO_LAYER:
            plain |= {"inner_dim": 64, "co_occurrence": 1, "table_bias": 1}
        searched = {name: value for name, value in plain.items() if name in space}
        likely = [{**known, **searched, "dim": d, "dim_exponent": a} for d, a in dims.items()]
        return [*likely, *points][: max(1, self._study.tuning.trials // 2)]

    def _proposed(self, arm: Arm, before: list[FrozenTrial]) -> dict[str, float]:
        """By quality and size both: every precision of a trial is one for the sampler.

        The reference has one size, and is tuned as all arms of studies are.
        """
        if arm.method == SLT:
            return super()._proposed(arm, before)
        optuna = self._optuna
        kept_in = optuna.distributions.CategoricalDistribution(PRECISIONS)
        space = {**self._space(arm), "precision": kept_in}
        # Seeded by its place alone: with one job, what is proposed is the same again.
        sampler = optuna.samplers.TPESampler(n_startup_trials=1, seed=len(before))
        proposals = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        headline = self._study.task.headline
        proposals.add_trials(
            optuna.create_trial(
                params={**_NEW, **trial.params, "precision": point["precision"]},
                distributions=space,
                values=self._aims(
                    headline.quality(point["scores"][headline.name]), int(point["bytes"])
                ),
            )
            for trial in before
            if trial.state.name == "COMPLETE"
            for point in trial.user_attrs["points"]
            if math.isfinite(point["scores"][headline.name])
        )
        found: dict[str, float] = proposals.ask(space).params
        return {name: value for name, value in found.items() if name != "precision"}

    def _aims(self, quality: float, size: int) -> list[float]:
        """What is to rise and what to fall: quality that is not asked for counts for nothing, nor
        does size below what is given, nor quality far below what is asked."""
        if self._study.max_bytes is not None:
            return [quality, math.log(max(size, self._study.max_bytes))]
        assert self._study.tolerance is not None
        asked = float(self.reference().value or 0.0) - self._study.tolerance
        far = asked - _FAR * self._study.tolerance
        return [min(max(quality, far), asked), math.log(size)]

    def _is_rival(self, other: FrozenTrial, mine: FrozenTrial, seed: int | None) -> bool:
        """Of trials, the same setting alone."""
        if seed is None:
            return not is_final(other) and other.params == mine.params
        return super()._is_rival(other, mine, seed)

    def _compares(self, other: FrozenTrial, mine: FrozenTrial) -> bool:
        """A model is given up for what is no larger than it: a small one need not be as good as a
        large one."""
        if "dim" not in mine.params:
            return True
        narrower: bool = other.params["dim"] <= mine.params["dim"]
        one, two = ({**_NEW, **trial.params} for trial in (other, mine))
        return narrower and all(one[name] >= two[name] for name in ("min_count", "dim_exponent"))

    def _space(self, arm: Arm) -> dict[str, Any]:
        distributions = self._optuna.distributions
        space = super()._space(arm)
        for name, range_ in self._study.searched(arm).items():
            space[name] = (
                distributions.IntDistribution(range_.low, range_.high, log=True)
                if isinstance(range_, Whole)
                else distributions.CategoricalDistribution(range_)
            )
        return space

    def _at(self, range_: Any, share: float) -> float:
        """Where a share of a range ends; whole numbers are rounded."""
        choices = getattr(range_, "choices", None)
        if choices is not None:
            chosen: float = choices[int(share * len(choices))]
            return chosen
        found = super()._at(range_, share)
        whole = isinstance(range_, self._optuna.distributions.IntDistribution)
        return round(found) if whole else found
