"""Who trains what: the trials of every arm, kept by Optuna in a database.

Each arm is an Optuna study. Its trials are *tuning* trials, whose settings are proposed, or *final*
ones, the chosen setting with one of the seeds (an attribute of theirs). Claiming a run means adding
it as a running trial; of rivals on several machines, the lowest number has it.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlet.errors import MletError, RunError, WriteError
from mlet.liveness import started
from mlet.reading import checksum, first_line
from mlet.studies.halving import Halving
from mlet.studies.study import Arm, StudyConfig
from mlet.studies.trials import (
    SEALS,
    is_as_written,
    is_final,
    is_running,
    owner_is_dead,
    validations_of,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

#: Seed of all tuning trials; the final run with this seed is one of them, and is not trained twice.
TUNING_SEED = 0
#: A run whose process was killed is tried this often.
_ATTEMPTS = 2
#: What SQLite says of a damaged file.
_DAMAGE = "malformed", "not a database", "no such column", "no such table"


@dataclass(frozen=True)
class Claim:
    """A run to be trained by whoever holds it.

    Attributes:
        arm: which.
        number: of Optuna's trial.
        setting: the tuned settings, as `StudyConfig.run` takes them.
        seed: of the run.
        final: whether it is scored on the test split.
        halving: when a tuning trial is given up; None: never.
    """

    arm: Arm
    number: int
    setting: Mapping[str, float]
    seed: int
    final: bool
    halving: Halving | None = None


class Ledger:
    """The database of one study.

    Args:
        study: what is to be done.
        url: of the database, as ``sqlite:///out/study.db``.

    Raises:
        RunError: the database cannot be opened.
    """

    def __init__(self, study: StudyConfig, url: str) -> None:
        # Imported on use: loading Optuna and SQLAlchemy takes longer than most commands.
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._study = study
        self._url = url
        self._storage = self._open_storage(url)
        self._open: dict[str, optuna.Study] = {}
        self._forgotten: set[tuple[str, int]] = set()

    def _open_storage(self, url: str, attempts: int = 4) -> optuna.storages.RDBStorage:
        from sqlalchemy.exc import DBAPIError

        file = Path(url.removeprefix("sqlite:///"))
        if url.startswith("sqlite:///") and file.exists() and not file.is_file():
            raise self._damaged("it is no regular file")
        # Several processes write to one file: wait for a lock rather than fail.
        patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        try:
            return self._optuna.storages.RDBStorage(url, engine_kwargs=patience)
        except Exception as error:  # SQLAlchemy, its drivers and Optuna have no common base
            if isinstance(error, DBAPIError) and attempts > 1:
                time.sleep(0.5)  # two processes may be creating the tables at once
                return self._open_storage(url, attempts - 1)
            reason = first_line(error)
            if any(words in reason for words in _DAMAGE):
                raise self._damaged(_DAMAGE[0]) from None
            raise RunError(f"study database {url}: cannot be opened ({reason})") from None

    @contextmanager
    def named_failures(self) -> Iterator[None]:
        """Turn failures of the database, as on a full disk, into errors that name it."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (self._optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            reason = first_line(error.__cause__ or error)
            if any(words in reason for words in _DAMAGE):
                raise self._damaged(reason) from None
            raise WriteError(
                f"study database {self._url}: cannot be used ({reason}); is the disk full? "
                f"What was written is intact: give the same command again"
            ) from None

    @contextmanager
    def _named_damage(self) -> Iterator[None]:
        """Turn what Optuna makes of a damaged database into an error that names it."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MletError, SQLAlchemyError, self._optuna.exceptions.StorageInternalError):
            raise
        except Exception as error:  # of whatever kind its parsers raise
            raise self._damaged(first_line(error)) from None

    def claim(self, arm: Arm) -> Claim | None:
        """A run of this arm that nobody trains yet; None if there is none now."""
        trials = self.trials(arm)
        tuning = [trial for trial in trials if not is_final(trial)]
        if len(tuning) < self._study.tuning.trials:
            # The next setting may depend on the outcome of one that is being tried.
            return None if any(map(is_running, tuning)) else self._claim_tuning(arm, tuning)
        setting = None if any(map(is_running, tuning)) else self.chosen(arm)
        if setting is None:
            return None
        for seed in range(self._study.seeds):
            if not any(is_final(trial, seed) and trial.params == setting for trial in trials):
                return self._add(arm, setting, seed)
        return None

    def complete(
        self,
        claim: Claim,
        valid: float,
        validations: Sequence[float] = (),
        points: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """The run of a claim came to its end, with that headline metric on validation, these
        qualities on the way, and what its tables give at other precisions, where that was asked."""
        quality = self._study.task.headline.quality(valid)
        outcome: dict[str, Any] = {"value": quality}
        if points:
            outcome["points"] = list(points)
            self._set(self._trial(claim.arm, claim.number), "points", outcome["points"])
        self._note(claim, outcome, validations)
        self._open_study(claim.arm).tell(claim.number, quality)

    def prune(self, claim: Claim, validations: Sequence[float]) -> None:
        """The run of a claim was given up after these; it counts as tried, and is not chosen."""
        self._note(claim, {}, validations)
        pruned = self._optuna.trial.TrialState.PRUNED
        self._open_study(claim.arm).tell(claim.number, state=pruned)

    def _note(self, claim: Claim, outcome: dict[str, Any], validations: Sequence[float]) -> None:
        """Write down how a run went, and seal it with its outcome."""
        trial = self._trial(claim.arm, claim.number)
        for place, value in enumerate(validations):
            self._storage.set_trial_intermediate_value(trial._trial_id, place, value)
        if validations:
            outcome = {**outcome, "validations": list(validations)}
        self._set(trial, SEALS[1], checksum(outcome, trial.user_attrs[SEALS[0]]))

    def fail(self, claim: Claim, reason: str) -> None:
        """The run of a claim cannot be trained; it counts as tried."""
        self._close(claim.arm, claim.number, "reason", reason)

    def give_back(self, claim: Claim) -> None:
        """Undo a claim: somebody is to take the run up again, where it was left."""
        self._close(claim.arm, claim.number, "void", "given back")

    def lose(self, claim: Claim, reason: str) -> None:
        """The process that trained a claim was killed; the run is tried once more, then failed."""
        before = [
            trial
            for trial in self._all_trials(claim.arm)
            if trial.user_attrs.get("void") == reason
            and trial.params == claim.setting
            and trial.user_attrs["seed"] == claim.seed
        ]
        if len(before) + 1 < _ATTEMPTS:
            self._close(claim.arm, claim.number, "void", reason)
        else:
            self.fail(claim, reason)

    def recover(self, arm: Arm, *, take_over: bool) -> None:
        """Give back the claims of this machine's dead processes; all claims if ``take_over``."""
        for trial in self.trials(arm):
            if is_running(trial) and (take_over or owner_is_dead(trial)):
                self._close(arm, trial.number, "void", "given back")

    def forget(self, arm: Arm, number: int) -> None:
        """Take a trial for one that was never made: what it left is gone."""
        self._forgotten.add((arm.name, number))

    def tuning(self, arm: Arm) -> list[FrozenTrial]:
        """Its tuning trials that count."""
        return [trial for trial in self.trials(arm) if not is_final(trial)]

    def trials(self, arm: Arm) -> list[FrozenTrial]:
        """The trials of an arm that count, in the order in which they were claimed."""
        return [
            trial
            for trial in self._all_trials(arm)
            if "void" not in trial.user_attrs and (arm.name, trial.number) not in self._forgotten
        ]

    def chosen(self, arm: Arm) -> dict[str, float] | None:
        """The best setting on validation of those that fail with no seed; None if there is none.

        Final once all tuning trials and final runs are finished.
        """
        trials = self.trials(arm)
        broken = [t.params for t in trials if t.state.name == "FAIL"]
        works: list[FrozenTrial] = [
            t
            for t in trials
            if t.state.name == "COMPLETE" and not is_final(t) and t.params not in broken
        ]
        return dict(max(works, key=lambda t: float(t.value or 0.0)).params) if works else None

    def finals(self, arm: Arm) -> list[FrozenTrial]:
        """The finished final runs of the chosen setting, by seed."""
        chosen = self.chosen(arm)
        # By seed: a run that was lost and trained again has two trials, of the same numbers.
        finals = {
            trial.user_attrs["seed"]: trial
            for trial in self.trials(arm)
            if is_final(trial) and trial.params == chosen and trial.state.name == "COMPLETE"
        }
        return [finals[seed] for seed in sorted(finals)]

    def done(self, arm: Arm) -> bool:
        """Whether nothing is left to train, by anyone."""
        trials = self.trials(arm)
        tuned = sum(not is_final(trial) for trial in trials) >= self._study.tuning.trials
        if not tuned or any(map(is_running, trials)):
            return False
        return self.chosen(arm) is None or len(self.finals(arm)) >= self._study.seeds

    def _claim_tuning(self, arm: Arm, before: list[FrozenTrial]) -> Claim | None:
        tried = [trial.params for trial in before]
        fresh = [point for point in self._spread(arm) if point not in tried]
        return self._add(arm, fresh[0] if fresh else self._proposed(arm, before), None)

    def _proposed(self, arm: Arm, before: list[FrozenTrial]) -> dict[str, float]:
        """A setting that what was tried suggests."""
        # Asked of a study in memory, so that the claim appears in the database whole. Seeded by its
        # place alone: an interrupted study tries what it would have tried.
        sampler = self._optuna.samplers.TPESampler(n_startup_trials=1, seed=len(before))
        proposals = self._optuna.create_study(direction="maximize", sampler=sampler)
        proposals.add_trials(before)
        return proposals.ask(self._space(arm)).params

    def _add(self, arm: Arm, setting: dict[str, float], seed: int | None) -> Claim | None:
        """Claim a given setting: for tuning, or finally with a seed."""
        attributes = {
            "owner": f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}",
            "owner_started": started(),
            "seed": TUNING_SEED if seed is None else seed,
            "final": seed is not None,
        }
        attributes[SEALS[0]] = checksum({**attributes, "params": setting})
        state = self._optuna.trial.TrialState.RUNNING
        self._open_study(arm).add_trial(
            self._optuna.create_trial(
                state=state, params=setting, distributions=self._space(arm), user_attrs=attributes
            )
        )
        mine = (
            t for t in self._all_trials(arm) if t.user_attrs.get("owner") == attributes["owner"]
        )
        return self._unless_rivalled(arm, next(mine).number, seed)

    def _unless_rivalled(self, arm: Arm, number: int, seed: int | None) -> Claim | None:
        """The claim, unless another process made the same one a moment before."""
        trials = self.trials(arm)
        mine = next(trial for trial in trials if trial.number == number)
        for other in trials:
            if other.number < number and self._is_rival(other, mine, seed):
                self._close(arm, number, "void", "rivalled")
                return None
        if seed is not None:
            return Claim(arm, number, dict(mine.params), seed, final=True)
        before = [
            validations_of(trial)
            for trial in trials
            if trial.number < number and self._compares(trial, mine)
        ]
        halving = self._study.halving(before)
        return Claim(arm, number, dict(mine.params), TUNING_SEED, final=False, halving=halving)

    def _is_rival(self, other: FrozenTrial, mine: FrozenTrial, seed: int | None) -> bool:
        """Whether an earlier claim leaves no place for one's own, for tuning or with a seed."""
        if seed is None:
            return is_running(other) and not is_final(other)
        return is_final(other, seed) and other.params == mine.params

    def _compares(self, other: FrozenTrial, mine: FrozenTrial) -> bool:
        """Whether an earlier trial has a say in whether this one is given up."""
        return True

    def _spread(self, arm: Arm) -> list[dict[str, float]]:
        """The settings that every arm tries first: the middles of equal parts of the ranges."""
        tuning = self._study.tuning
        if tuning.learning_rates is not None:
            return [{"learning_rate": rate} for rate in tuning.learning_rates]
        count = -(-2 * tuning.trials // 3)
        points: list[dict[str, float]] = [{} for _ in range(count)]
        for place, (name, range_) in enumerate(self._space(arm).items()):
            # Step sizes rise; a second range is run through in an order not aligned with them.
            order = np.random.default_rng(place).permutation(count) if place else np.arange(count)
            for point, step in zip(points, order, strict=True):
                share = (step + 0.5) / count
                point[name] = self._at(range_, share)
        if tuning.halving is not None:
            # The first is compared with nothing: it had better be a likely one.
            middle_out = sorted(range(count), key=lambda place: abs(place - (count - 1) / 2))
            return [points[place] for place in middle_out]
        return points

    def _at(self, range_: Any, share: float) -> float:
        """Where a share of a range, in log scale, ends."""
        return float(range_.low * (range_.high / range_.low) ** share)

    def _space(self, arm: Arm) -> dict[str, Any]:
        float_ = self._optuna.distributions.FloatDistribution
        low, high = self._study.rates(arm)
        space = {"learning_rate": float_(low, high, log=True)}
        for name, range_ in self._study.tuning.ranges.items():
            space[name] = float_(*range_, log=True)
        return space

    def _open_study(self, arm: Arm) -> optuna.Study:
        if arm.name not in self._open:
            with self._named_damage():
                self._open[arm.name] = self._optuna.create_study(
                    storage=self._storage,
                    study_name=arm.name,
                    direction="maximize",
                    load_if_exists=True,
                )
        return self._open[arm.name]

    def _all_trials(self, arm: Arm) -> list[FrozenTrial]:
        study = self._open_study(arm)
        with self._named_damage():
            trials = study.get_trials(deepcopy=False)
        sealed = False  # mlet 0.1, by which the study may have been begun, had no seals
        for trial in trials:
            sealed = sealed or SEALS[0] in trial.user_attrs
            if sealed and not is_as_written(trial):
                raise self._damaged(f"trial {trial.number} of {arm.name} is not what was written")
        return trials

    def _trial(self, arm: Arm, number: int) -> FrozenTrial:
        return next(trial for trial in self._all_trials(arm) if trial.number == number)

    def _close(self, arm: Arm, number: int, attribute: str, text: str) -> None:
        trial = self._trial(arm, number)
        self._set(trial, attribute, text)
        self._set(trial, SEALS[1], checksum({attribute: text}, trial.user_attrs.get(SEALS[0], 0)))
        self._open_study(arm).tell(number, state=self._optuna.trial.TrialState.FAIL)

    def _set(self, trial: FrozenTrial, attribute: str, value: Any) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, attribute, value)

    def _damaged(self, how: str) -> RunError:
        return RunError(
            f"study database {self._url}: damaged ({how}); move it away and give the command "
            f"again: runs that are finished are not trained again"
        )
