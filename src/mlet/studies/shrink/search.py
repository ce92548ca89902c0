"""Searches, confirms with fresh seeds, and writes the model that was chosen."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from mlet.data import PreparedDataset
from mlet.data.prepare import Report
from mlet.errors import ConfigError, RunError
from mlet.export import load_collapsed_model, save_collapsed
from mlet.interrupts import DeferredInterrupt
from mlet.nn.compression import PRECISIONS
from mlet.reporting.text import human_bytes
from mlet.studies.processes import usable_cores
from mlet.studies.runner import Runner, check_data, keep_config
from mlet.studies.runs import is_lost, read_test_scores, run_path, score_run
from mlet.studies.scores import TestRows
from mlet.studies.shrink.ledger import SearchLedger
from mlet.studies.shrink.points import ALL, RESTRICTIONS, Kind, Point, Values, best_within, smallest
from mlet.studies.shrink.result import Choice, ShrinkResult
from mlet.studies.shrink.study import DATA, ShrinkStudy
from mlet.studies.study import Arm
from mlet.training import RunDirectory

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: The chosen model, in the directory of a search.
MODEL_FILE = "model.safetensors"
#: How the reference is called among what is chosen.
REFERENCE = "the reference"


def shrink(
    study: ShrinkStudy,
    out: Path,
    *,
    storage: str | None = None,
    jobs: int | None = None,
    take_over: bool = False,
    report: Report = lambda what, done, total: None,
) -> ShrinkResult:
    """Tune the reference, search for the smallest model, and confirm what is chosen.

    All arms have the same trials; every finished one is scored on validation at every precision.
    What is chosen, with and without each of its parts, is trained with fresh seeds; what is then
    worse than asked on validation gives way to the next. Test rows are scored at the end, once.
    Called again it continues.

    Args:
        study: what is searched.
        out: directory for runs and the chosen model.
        storage: URL of the database of trials; a SQLite file in ``out`` by default.
        jobs: runs at once, each in a process of its own; None: one for each core.
        take_over: give back runs that other machines hold.
        report: told of progress.

    Raises:
        ConfigError: nothing in the search is as small as asked.
        RunError: ``out`` holds another search; the reference cannot be trained; nothing that was
            found is as small as asked.
    """
    began = time.perf_counter()
    jobs = jobs or usable_cores()
    data = study.datasets[DATA].prepared
    assert data is not None
    if study.max_bytes is not None and (least := study.smallest_bytes(data)) > study.max_bytes:
        raise ConfigError(
            f"--max-bytes: no model of the search has tables of {human_bytes(study.max_bytes)} "
            f"({study.max_bytes:,} bytes); the smallest, of d = 1, takes {least:,}"
        )
    keep_config(study, out)
    check_data(out / "runs" / DATA, data)
    ledger = SearchLedger(study, storage or f"sqlite:///{(out / 'study.db').resolve()}")
    runner = _Runner(study, out, ledger, {DATA: data}, ("cpu",), report)
    with ledger.named_failures(), DeferredInterrupt() as interrupt:
        for arm in runner.trainings:
            ledger.recover(arm, take_over=take_over)
        runner.work(jobs, interrupt)
        ledger.reference()  # that there is one
        search = _Search(study, out, ledger, data)
        while True:
            picks = search.picks()
            if picks[ALL] is None:
                raise RunError(search.nothing_fits())
            ledger.wanted = search.wanted(picks)
            for arm in runner.trainings:
                runner.forget_lost(arm)
            if all(search.is_tried(point) for point in picks.values() if point is not None):
                return search.result(picks, time.perf_counter() - began, jobs)
            runner.work(jobs, interrupt)


class _Runner(Runner):
    """Scores every run at every precision; keeps the models of all that was confirmed."""

    valid_precisions = PRECISIONS

    def forget_lost(self, arm: Arm) -> None:
        """Let final runs be trained again whose model somebody has removed."""
        for trial in self._ledger.finals(arm):
            path = run_path(self._out, arm.name, trial.params, trial.user_attrs["seed"])
            if is_lost(path, ()):
                shutil.rmtree(path, ignore_errors=True)
                self._ledger.forget(arm, trial.number)


class _Search:
    """What the trials of a ledger say."""

    def __init__(self, study: ShrinkStudy, out: Path, ledger: SearchLedger, data: Path) -> None:
        self._study, self._out, self._ledger, self._data = study, out, ledger, data
        self._arms: dict[str, Arm] = {arm.method.name: arm for arm in study.arms()}
        self._headline = study.task.headline
        self._fresh: dict[str, dict[Values, dict[int, FrozenTrial]]] = {}
        self.points = tuple(point for arm in study.arms() for point in self._points_of(arm))

    def _points_of(self, arm: Arm) -> list[Point]:
        kind = cast(Kind, arm.method.name)
        return [
            Point(kind, trial.number, dict(trial.params), **point)
            for trial in self._ledger.tuning(arm)
            if trial.state.name == "COMPLETE"
            for point in trial.user_attrs["points"]
            if math.isfinite(point["scores"][self._headline.name])
        ]

    def picks(self) -> dict[str, Point | None]:
        """The reference, and what is chosen under each restriction, as far as is known."""
        self._fresh = {
            kind: self._ledger.fresh(arm) for kind, arm in self._arms.items()
        }  # read once: every point is asked for
        failed = [p for p in self.points if self.is_tried(p) and self._mean(p) is None]
        able = [p for p in self.points if _is_reference(p) and p not in failed]
        if not able:
            raise RunError(f"{self._out}: no setting of the reference works with all fresh seeds")
        reference = max(able, key=lambda point: point.quality(self._headline))
        found: dict[str, Point | None] = {REFERENCE: reference}
        refuted = failed + self._refuted(reference)
        for name, allowed in RESTRICTIONS.items():
            points = [point for point in self.points if allowed(point) and point not in failed]
            found[name] = self._pick(points, reference, refuted)
        return found

    def _pick(
        self, points: Sequence[Point], reference: Point, refuted: Collection[Point]
    ) -> Point | None:
        if self._study.max_bytes is not None:
            return best_within(points, self._headline, self._study.max_bytes)
        assert self._study.tolerance is not None
        bar = reference.quality(self._headline) - self._study.tolerance
        return smallest(points, self._headline, bar, refuted)

    def _refuted(self, reference: Point) -> list[Point]:
        """Those that fresh seeds have found to be worse than asked, on validation."""
        asked = self._mean(reference)
        if asked is None or self._study.tolerance is None:
            return []
        least = asked - self._study.tolerance
        tried = [(point, self._mean(point)) for point in self.points if self.is_tried(point)]
        return [point for point, mean in tried if mean is not None and mean < least]

    def is_tried(self, point: Point) -> bool:
        """Whether its setting was trained with every fresh seed, or could not be."""
        return len(self._trials(point)) == self._study.seeds

    def _trials(self, point: Point) -> Mapping[int, FrozenTrial]:
        """Of its setting, by fresh seed."""
        return self._fresh[point.kind].get(point.key[1], {})

    def valid(self, point: Point) -> list[Mapping[str, float]]:
        """Its metrics on validation for each fresh seed that it could be trained with."""
        return [
            found["scores"]
            for _, trial in sorted(self._trials(point).items())
            if trial.state.name == "COMPLETE"
            for found in trial.user_attrs["points"]
            if found["precision"] == point.precision
        ]

    def _mean(self, point: Point) -> float | None:
        """Its mean quality over all fresh seeds; None if it lacks one."""
        values = [self._headline.quality(one[self._headline.name]) for one in self.valid(point)]
        enough = len(values) == self._study.seeds and all(map(math.isfinite, values))
        return sum(values) / len(values) if enough else None

    def wanted(self, picks: Mapping[str, Point | None]) -> dict[str, list[Mapping[str, float]]]:
        """The settings of picks, by arm."""
        found: dict[str, list[Mapping[str, float]]] = {arm.name: [] for arm in self._arms.values()}
        for point in picks.values():
            if point is not None:
                settings = found[self._arms[point.kind].name]
                if point.setting not in settings:
                    settings.append(point.setting)
        return found

    def nothing_fits(self) -> str:
        """That no trial came to what was asked."""
        least = min(point.bytes for point in self.points)
        return (
            f"--max-bytes {self._study.max_bytes}: the smallest tables of "
            f"{self._study.tuning.trials} trials an arm take {least:,} bytes; allow more, or give "
            f"more --trials in another --out"
        )

    def result(self, picks: Mapping[str, Point | None], seconds: float, jobs: int) -> ShrinkResult:
        """Score what was chosen on test, and write the model."""
        chosen = {
            name: None if point is None else self._choice(name, point)
            for name, point in picks.items()
        }
        reference, first = chosen.pop(REFERENCE), next(iter(chosen.values()))
        assert reference is not None
        assert first is not None
        seed = self._write(first)
        given_up = {
            arm.method.name: sum(t.state.name != "COMPLETE" for t in self._ledger.tuning(arm))
            for arm in self._arms.values()
        }
        return ShrinkResult(
            study=self._study,
            schema=PreparedDataset(self._data).schema,
            points=self.points,
            given_up=given_up,
            reference=reference,
            choices=chosen,
            model_file=self._out / MODEL_FILE,
            seed=seed,
            seconds=seconds,
            jobs=jobs,
        )

    def _choice(self, name: str, point: Point) -> Choice:
        arm, task = self._arms[point.kind], self._study.task
        rows = TestRows(PreparedDataset(self._data).split("test"), task)
        paths = tuple(
            run_path(self._out, arm.name, point.setting, seed) for seed in self._study.fresh_seeds
        )
        test = []
        for path in paths:
            score_run(path, self._data, self._study.resamples, point.precision)
            test.append(rows.scored(read_test_scores(path, point.precision).predictions))
        allowed = _is_reference if name == REFERENCE else RESTRICTIONS[name]
        return Choice(
            name=name,
            point=point,
            trials=len({(p.kind, p.trial) for p in self.points if allowed(p)}),
            valid=_by_metric(self.valid(point)),
            test=_by_metric(test),
            runs=paths,
        )

    def _write(self, choice: Choice) -> int:
        """Write the run of the seed that is best on validation; returns the seed."""
        values = [self._headline.quality(v) for v in choice.valid[self._headline.name]]
        best = int(np.argmax(values))
        found = load_collapsed_model(RunDirectory(choice.runs[best]).model_file)
        save_collapsed(
            found.model,
            found.config,
            found.schema,
            self._out / MODEL_FILE,
            choice.point.precision,
            vocabularies=found.vocabularies,
        )
        return self._study.fresh_seeds[best]


def _is_reference(point: Point) -> bool:
    return point.kind == "slt" and point.precision == "float32"


def _by_metric(scores: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(one[name] for one in scores) for name in scores[0]}
