"""What a study found, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlet.data import PreparedDataset
from mlet.data.schema import DatasetSchema
from mlet.experiments.compare import machine
from mlet.experiments.results import ArmResult, Comparison, RunScores
from mlet.metrics import Interval, percentile_interval, score
from mlet.sweep.ledger import Ledger, is_final
from mlet.sweep.runs import read_test_scores, run_path
from mlet.sweep.slices import Slice, training_count_deciles
from mlet.sweep.study import Arm, StudyConfig, panels
from mlet.training import RunDirectory

#: A row is rare if its rarest category has fewer training rows than this.
RARE_BELOW = 10
#: A chosen step size this near to an end of the range tried, in shares of it, is reported.
_EDGE = 0.05

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tuning:
    """How an arm was tuned.

    Attributes:
        setting: the chosen one.
        tried, failed: trials, and those of them that diverged or could not be trained.
        at_edge: whether the chosen step size is at an end of the range.
    """

    setting: Mapping[str, float]
    tried: int
    failed: int
    at_edge: bool


@dataclass(frozen=True, eq=False)
class StudyArm:
    """One arm with all its final runs.

    Attributes:
        arm: which.
        tuning: how it was tuned.
        result: scores by seed, size and time, as of a comparison.
        training_bytes: size of all parameters while training.
        resamples: (seeds, samples, 2) AUC and logloss on resampled test rows, paired between arms.
        slices: (seeds, S, 2) AUC and logloss on the slices of the panel.
        predictions: files of test predictions, by seed.
    """

    arm: Arm
    tuning: Tuning
    result: ArmResult
    training_bytes: int
    resamples: Floats
    slices: Floats
    predictions: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class Panel:
    """The arms that are compared with one another: one data set, model and optimizer.

    Attributes:
        dataset, model, optimizer: their names in the study.
        comparison: single-layer and MLET arms.
        arms: those and the peers.
        slices: of the test rows; see `training_count_deciles`.
        data: the prepared data set.
    """

    dataset: str
    model: str
    optimizer: str
    comparison: Comparison
    arms: tuple[StudyArm, ...]
    slices: tuple[Slice, ...]
    data: Path

    @property
    def title(self) -> str:
        """As in headings."""
        return f"{self.dataset} · {self.model} · {self.optimizer}"

    def curve(self, method: str) -> list[StudyArm]:
        """The arms of a method, by dimension."""
        arms = [arm for arm in self.arms if arm.arm.method.name == method]
        return sorted(arms, key=lambda arm: arm.arm.dim)

    def slt(self, dim: int) -> StudyArm | None:
        """The single-layer arm of a dimension; None if it could not be trained."""
        return next((arm for arm in self.curve("slt") if arm.arm.dim == dim), None)

    @property
    def mlet(self) -> list[StudyArm]:
        """The MLET arms for which there is a single-layer arm to compare with."""
        return [a for a in self.arms if a.arm.method.is_mlet and self.slt(a.arm.dim) is not None]

    @property
    def peers(self) -> list[StudyArm]:
        """All arms that are neither."""
        return [a for a in self.arms if not a.arm.method.is_mlet and a.arm.method.name != "slt"]

    def row_interval(self, arm: StudyArm, measure: int = 0) -> Interval:
        """95 % interval of MLET's difference to SLT over resampled test rows, the seeds given.

        Args:
            arm: an arm of a dimension that has a single-layer one.
            measure: 0 for AUC, 1 for logloss.
        """
        slt = self.slt(arm.arm.dim)
        assert slt is not None
        difference = (arm.resamples - slt.resamples)[:, :, measure].mean(axis=0)
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
        jobs: runs at once.
        machine: what it ran on.
    """

    study: StudyConfig
    panels: tuple[Panel, ...]
    failures: tuple[Failure, ...]
    schemas: Mapping[str, DatasetSchema]
    seconds: float
    jobs: int
    machine: str


def collect(
    study: StudyConfig,
    out: Path,
    ledger: Ledger,
    data: Mapping[str, Path],
    *,
    seconds: float,
    jobs: int,
) -> StudyResult:
    """Read the final runs of every arm and score them on the test split's slices."""
    datasets = {name: PreparedDataset(path) for name, path in data.items()}
    slices = {name: training_count_deciles(opened) for name, opened in datasets.items()}
    rare = {name: opened.rarest_counts("test") < RARE_BELOW for name, opened in datasets.items()}
    found, failures = [], []
    for (dataset, model, optimizer), members in panels(study.arms()):
        arms = []
        for arm in members:
            if len(ledger.finals(arm)) < study.seeds:
                reasons = [t.user_attrs.get("reason", "unfinished") for t in ledger.trials(arm)]
                failures.append(Failure(arm, tuple(dict.fromkeys(reasons))))
                continue
            labels = np.asarray(datasets[dataset].split("test").labels)
            arms.append(_read(study, out, ledger, arm, labels, rare[dataset], slices[dataset]))
        slt = [arm for arm in arms if arm.arm.method.name == "slt"]
        if not slt:
            continue
        base = study.run(slt[0].arm, slt[0].tuning.setting, 0, data[dataset])
        dims = {arm.arm.dim for arm in slt}
        comparable = [a for a in arms if a in slt or (a.arm.method.is_mlet and a.arm.dim in dims)]
        comparison = Comparison(
            schema=datasets[dataset].schema,
            base=base,
            arms=tuple(arm.result for arm in comparable),
            tried_rates=(),
            diverged=(),
            rare_below=RARE_BELOW,
            rare_rows=int(rare[dataset].sum()),
            jobs=jobs,
            seconds=seconds,
            machine=machine(),
        )
        found.append(
            Panel(
                dataset,
                model,
                optimizer,
                comparison,
                tuple(arms),
                tuple(slices[dataset]),
                data[dataset],
            )
        )
    schemas = {name: opened.schema for name, opened in datasets.items()}
    return StudyResult(study, tuple(found), tuple(failures), schemas, seconds, jobs, machine())


def _read(
    study: StudyConfig,
    out: Path,
    ledger: Ledger,
    arm: Arm,
    labels: npt.NDArray[np.uint8],
    rare: npt.NDArray[np.bool_],
    slices: list[Slice],
) -> StudyArm:
    trials, setting = ledger.trials(arm), ledger.chosen(arm)
    assert setting is not None
    tried = [trial for trial in trials if not is_final(trial)]
    runs, resamples, sliced = [], [], []
    paths = [run_path(out, arm.name, setting, seed) for seed in range(study.seeds)]
    for seed, path in enumerate(paths):
        test, summary = read_test_scores(path), RunDirectory(path).summary()
        p = test.probabilities
        runs.append(
            RunScores(
                seed=seed,
                test=score(labels, p),
                rare=score(labels[rare], p[rare]),
                valid_auc=summary.valid["auc"],
                steps=summary.steps,
                seconds=summary.seconds,
            )
        )
        resamples.append(test.resamples[:, :2])
        sliced.append([score(labels[part.rows], p[part.rows])[:2] for part in slices])
    summary = RunDirectory(paths[0]).summary()
    config = RunDirectory(paths[0]).config()
    low, high = study.rates(arm)
    place = np.log(setting["learning_rate"] / low) / np.log(high / low)
    return StudyArm(
        arm=arm,
        tuning=Tuning(
            setting=setting,
            tried=len(tried),
            failed=sum(trial.state.name == "FAIL" for trial in tried),
            at_edge=not _EDGE < place < 1 - _EDGE,
        ),
        result=ArmResult(
            arm.dim,
            config.model.inner_dim,
            setting["learning_rate"],
            tuple(runs),
            summary.model_bytes,
        ),
        training_bytes=summary.training_bytes,
        resamples=np.array(resamples),
        slices=np.array(sliced, np.float64),
        predictions=tuple(paths),
    )
