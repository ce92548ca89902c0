"""What a study found, arm by arm."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from mlet.data import PreparedDataset
from mlet.data.frequency import Slice, training_count_deciles
from mlet.data.schema import DatasetSchema
from mlet.metrics import Interval, percentile_interval
from mlet.studies.bias_only import BiasOnly
from mlet.studies.ledger import Ledger
from mlet.studies.methods import SLT, Method
from mlet.studies.runs import check_run, read_test_scores, run_path, score_run
from mlet.studies.scores import GAUC, RunScores, TestRows
from mlet.studies.statistics import Estimate, estimate
from mlet.studies.study import Arm, StudyConfig, panels
from mlet.task import Metric, Task
from mlet.training import RunConfig, RunDirectory, with_inner_dims

#: A chosen step size this near to an end of the range tried, in shares of it, is reported.
_EDGE = 0.05

Floats = npt.NDArray[np.float64]
Rows = Literal["test", "rare"]
Outcome = Literal["better", "worse", "unclear"]
ROWS: tuple[Rows, ...] = get_args(Rows)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Tuning:
    """How an arm was tuned.

    Attributes:
        setting: the chosen one.
        tried: trials.
        given_up: those of them that were not trained to their end, where trials are halved.
        failed: step sizes that diverged or could not be trained, with some seed.
        at_edge: whether the chosen step size is at an end of the range.
    """

    setting: Mapping[str, float]
    tried: int
    given_up: int
    failed: tuple[float, ...]
    at_edge: bool


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm with all its final runs.

    Attributes:
        arm: which.
        inner_dim: its k, of most fields where it is chosen for each; None for tables of one layer.
        tuning: how it was tuned.
        runs: by seed.
        model_bytes, training_bytes: of the served model, and of all parameters while training.
        resamples: (seeds, samples, M) measures of the task on resampled test rows, paired between
            arms.
        slices: (seeds, S, M) measures on the slices of the panel.
        predictions: files of test predictions, by seed.
    """

    arm: Arm
    inner_dim: int | None
    tuning: Tuning
    runs: tuple[RunScores, ...]
    model_bytes: int
    training_bytes: int
    resamples: Floats
    slices: Floats
    predictions: tuple[Path, ...]

    @property
    def dim(self) -> int:
        """Its d."""
        return self.arm.dim

    @property
    def method(self) -> Method:
        """How its tables are trained and served."""
        return self.arm.method

    @property
    def learning_rate(self) -> float:
        """Of the tables, as chosen on validation."""
        return self.tuning.setting["learning_rate"]

    def values(self, rows: Rows, measure: Metric) -> list[float]:
        """One number for each seed."""
        return [getattr(run, rows)[measure.name] for run in self.runs]

    def estimate(self, rows: Rows, measure: Metric) -> Estimate:
        """Mean and t-interval over seeds."""
        return estimate(self.values(rows, measure))

    @property
    def seconds(self) -> float:
        """Mean training time of a run."""
        return sum(run.seconds for run in self.runs) / len(self.runs)

    @property
    def step_milliseconds(self) -> float:
        """Mean training time of a step."""
        return 1e3 * sum(run.seconds for run in self.runs) / sum(run.steps for run in self.runs)


@dataclass(frozen=True, eq=False)
class Panel:
    """The arms that are compared with one another: one data set, model and optimizer.

    Attributes:
        dataset, model, optimizer: their names in the study.
        task: what its model is for.
        base: the run of its first arm, whose d, tables, step size and seed the others vary.
        schema: of the data set.
        data: where that is.
        arms: single-layer and MLET ones, and the peers.
        slices: of the test rows; see `training_count_deciles`.
        rare_below: training count below which a row's rarest category makes it rare.
        rare_rows: test rows that are.
        unseen_share: of the test rows, those with a category that training never saw.
    """

    dataset: str
    model: str
    optimizer: str
    task: Task
    base: RunConfig
    schema: DatasetSchema
    data: Path
    arms: tuple[ArmResult, ...]
    slices: tuple[Slice, ...]
    rare_below: int
    rare_rows: int
    unseen_share: float = 0.0

    @property
    def measures(self) -> tuple[Metric, ...]:
        """The task's, and GAUC where rows have groups."""
        return self.task.measures if self.schema.group is None else (*self.task.measures, GAUC)

    @property
    def title(self) -> str:
        """As in headings."""
        return f"{self.dataset} · {self.model} · {self.optimizer}"

    def curve(self, method: Method) -> list[ArmResult]:
        """The arms of a method, by dimension."""
        return sorted((arm for arm in self.arms if arm.method == method), key=lambda arm: arm.dim)

    def slt(self, dim: int) -> ArmResult | None:
        """The single-layer arm of a dimension; None if it could not be trained."""
        return next((arm for arm in self.curve(SLT) if arm.dim == dim), None)

    @property
    def mlet(self) -> list[ArmResult]:
        """The MLET arms for which there is a single-layer arm to compare with."""
        arms = (arm for arm in self.arms if arm.method.kind == "mlet")
        return [arm for arm in arms if self.slt(arm.dim) is not None]

    @property
    def two_layer(self) -> list[ArmResult]:
        """Those of them that have two layers: ``inner_dim: auto`` may leave all tables ordinary."""
        return [arm for arm in self.mlet if arm.inner_dim is not None]

    @property
    def mlet_methods(self) -> list[Method]:
        """The methods of those, by k; last the one whose k is chosen."""
        found = {arm.method.name: arm.method for arm in self.mlet}
        return sorted(found.values(), key=lambda method: method.sort_key)

    @property
    def peers(self) -> list[ArmResult]:
        """All arms that are neither."""
        return [arm for arm in self.arms if arm.method.kind == "peer"]

    def gain(self, arm: ArmResult, rows: Rows = "test", measure: Metric | None = None) -> Estimate:
        """An arm minus the single-layer one of its dimension, paired by seed; by default in the
        headline metric."""
        slt = self.slt(arm.dim)
        assert slt is not None
        measure = measure or self.task.headline
        pairs = zip(arm.values(rows, measure), slt.values(rows, measure), strict=True)
        return estimate([mine - single for mine, single in pairs])

    def outcome(self, arm: ArmResult) -> Outcome:
        """Whether the interval of the gain in the headline metric leaves out zero, and on which
        side."""
        gain = self.gain(arm)
        if gain.margin is None or abs(gain.mean) <= gain.margin:
            return "unclear"
        return "better" if self.task.headline.quality(gain.mean) > 0 else "worse"

    def row_interval(self, arm: ArmResult, measure: Metric | None = None) -> Interval:
        """95 % interval of an arm's difference to SLT over resampled test rows, the seeds given.

        Args:
            arm: of a dimension that has a single-layer one.
            measure: of the task; the headline metric by default.
        """
        slt = self.slt(arm.dim)
        assert slt is not None
        place = self.task.measures.index(measure or self.task.headline)
        difference = (arm.resamples - slt.resamples)[:, :, place].mean(axis=0)
        return percentile_interval(difference)


@dataclass(frozen=True)
class Failure:
    """An arm that has no result."""

    arm: Arm
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class StudyResult:
    """Everything a report needs.

    Attributes:
        study: its settings.
        panels: in the study's order.
        failures: arms that could not be trained.
        schemas: of the data sets, by name.
        seconds: of this call; runs made before took theirs then.
        jobs: runs at once; training times are of that load.
        machine: what it ran on.
        biases: what click rates alone give, by data set.
    """

    study: StudyConfig
    panels: tuple[Panel, ...]
    failures: tuple[Failure, ...]
    schemas: Mapping[str, DatasetSchema]
    seconds: float
    jobs: int
    machine: str
    biases: Mapping[str, BiasOnly] = field(default_factory=dict)


def collect(
    study: StudyConfig,
    out: Path,
    ledger: Ledger,
    data: Mapping[str, Path],
    *,
    seconds: float,
    jobs: int,
    biases: Mapping[str, BiasOnly],
) -> StudyResult:
    """Read the final runs of every arm and score them on the test split's slices."""
    datasets = {name: PreparedDataset(path) for name, path in data.items()}
    slices = {name: training_count_deciles(opened) for name, opened in datasets.items()}
    rarest = {name: opened.rarest_counts("test") for name, opened in datasets.items()}
    rare = {name: counts < study.rare_below for name, counts in rarest.items()}
    found, failures = [], []
    for (dataset, model, optimizer), members in panels(study.arms()):
        arms = []
        for arm in members:
            trained = study.trained(arm)
            if len(ledger.finals(trained)) < study.seeds:
                reasons = [t.user_attrs.get("reason", "unfinished") for t in ledger.trials(trained)]
                failures.append(Failure(arm, tuple(dict.fromkeys(reasons))))
                continue
            arms.append(
                _read(study, out, ledger, arm, datasets[dataset], rare[dataset], slices[dataset])
            )
        slt = [arm for arm in arms if arm.method == SLT]
        if slt:
            found.append(
                Panel(
                    dataset,
                    model,
                    optimizer,
                    study.task,
                    study.run(slt[0].arm, slt[0].tuning.setting, 0, data[dataset]),
                    datasets[dataset].schema,
                    data[dataset],
                    tuple(arms),
                    tuple(slices[dataset]),
                    study.rare_below,
                    int(rare[dataset].sum()),
                    float((rarest[dataset] == 0).mean()) if len(rarest[dataset]) else 0.0,
                )
            )
    schemas = {name: opened.schema for name, opened in datasets.items()}
    return StudyResult(
        study, tuple(found), tuple(failures), schemas, seconds, jobs, _machine(), biases
    )


def _read(
    study: StudyConfig,
    out: Path,
    ledger: Ledger,
    arm: Arm,
    data: PreparedDataset,
    rare: npt.NDArray[np.bool_],
    slices: list[Slice],
) -> ArmResult:
    trained, precision = study.trained(arm), arm.method.precision
    task, count = study.task, len(study.task.measures)
    on = TestRows(data.split("test"), task)
    setting = ledger.chosen(trained)
    assert setting is not None
    runs, resamples, sliced = [], [], []
    paths = tuple(run_path(out, trained.name, setting, seed) for seed in range(study.seeds))
    # What auto comes to is the same for all seeds, and asks for every vocabulary.
    first = with_inner_dims(study.run(trained, setting, 0, data.root))
    for seed, path in enumerate(paths):
        training = first.training.model_copy(update={"seed": seed})
        check_run(first.model_copy(update={"training": training}), path)
        RunDirectory(path).check_data(data, same_rows=True)
        score_run(path, data.root, study.resamples, precision)  # of a study that has grown
        test, summary = read_test_scores(path, precision), RunDirectory(path).summary()
        p = test.predictions
        runs.append(
            RunScores(
                seed=seed,
                test=on.scored_in_groups(p),
                rare=on.scored_in_groups(p, rare),
                valid=summary.valid[task.headline.name],
                steps=summary.steps,
                seconds=summary.seconds,
            )
        )
        resamples.append(test.resamples[:, :count])
        scores = [on.scored(p, part.rows) for part in slices]
        sliced.append([[one[measure.name] for measure in task.measures] for one in scores])
    summary = RunDirectory(paths[0]).summary()
    failed = [t.params["learning_rate"] for t in ledger.trials(trained) if t.state.name == "FAIL"]
    return ArmResult(
        arm=arm,
        inner_dim=_inner_dim(paths[0]),
        tuning=Tuning(
            setting=setting,
            tried=len(ledger.tuning(trained)),
            given_up=sum(t.state.name == "PRUNED" for t in ledger.tuning(trained)),
            failed=tuple(dict.fromkeys(failed)),
            at_edge=_at_edge(setting["learning_rate"], study.rates(arm)),
        ),
        runs=tuple(runs),
        model_bytes=test.model_bytes or summary.model_bytes,
        training_bytes=summary.training_bytes,
        resamples=np.array(resamples),
        slices=np.array(sliced, np.float64),
        predictions=paths,
    )


def _inner_dim(run: Path) -> int | None:
    """k of a run, in which `auto` has become numbers: of most fields, or of those that have one."""
    model = RunDirectory(run).config().model
    assert model.inner_dim != "auto"
    single = [k for k in model.inner_dims.values() if k is not None]
    return model.inner_dim or max(single, default=None)


def _at_edge(rate: float, tried: tuple[float, float]) -> bool:
    """Whether a better step size might lie beyond the ones tried; not if there was no choice."""
    low, high = tried
    if low == high:
        return False
    place = np.log(rate / low) / np.log(high / low)
    return not _EDGE < place < 1 - _EDGE


def _machine() -> str:
    """What it runs on, in words."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
