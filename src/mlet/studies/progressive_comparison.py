"""Single- and two-layer tables compared by progressive validation, every arm tuned alike."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt, TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from mlet.atomic import write_text
from mlet.data import PreparedDataset
from mlet.data.identity import fingerprint
from mlet.data.prepare import Report
from mlet.errors import RunError
from mlet.reading import read_sealed, write_sealed
from mlet.studies.methods import SLT, Method, mlet_methods
from mlet.studies.processes import usable_cores, worker_pool
from mlet.studies.progressive import Progress, progress
from mlet.studies.statistics import Estimate, estimate
from mlet.studies.study import ArmsConfig
from mlet.task import Task
from mlet.training import RunConfig


class ProgressiveConfig(ArmsConfig):
    """What is compared, and how.

    The base's data set is split by time or order; its training rows are the past that models know
    when it begins, in ``epochs`` shuffled passes.

    Step sizes are tried with seed 0; the best over the validation rows, scored progressively, is
    kept.

    Attributes:
        block_rows: rows that are scored before any of them is trained on, rounded up to whole
            batches.
    """

    block_rows: PositiveInt = 10_000

    @model_validator(mode="after")
    def _a_block_holds_a_batch(self) -> Self:
        if self.block_rows < self.base.training.batch_size:
            raise ValueError(
                f"block_rows: {self.block_rows} is below the batch size of "
                f"{self.base.training.batch_size}, and a block has whole batches"
            )
        return self

    @model_validator(mode="after")
    def _arms_are_models(self) -> Self:
        for method in self.methods():
            method.model(self.base.model, self.dims[0])
        return self

    def methods(self) -> list[Method]:
        """Single-layer training, then MLET with each k."""
        return [SLT, *mlet_methods(self.inner_dims, self.mlet or {})]

    def run(self, method: Method, dim: int, rate: float, seed: int) -> RunConfig:
        """One run of an arm."""
        training = self.base.training.model_copy(update={"seed": seed})
        return self.base.model_copy(
            update={
                "model": method.model(self.base.model, dim),
                "optimizer": self.base.optimizer.at(rate),
                "training": training,
            }
        )


@dataclass(frozen=True)
class ArmProgress:
    """One arm.

    Attributes:
        method, dim: which.
        learning_rate: the chosen one.
        runs: by seed.
    """

    method: Method
    dim: int
    learning_rate: float
    runs: tuple[Progress, ...]

    def values(self, metric: str) -> list[float]:
        """On the test rows, by seed."""
        return [run.test[metric] for run in self.runs]


@dataclass(frozen=True)
class ProgressiveResult:
    """All arms, SLT first at every dimension."""

    config: ProgressiveConfig
    task: Task
    arms: tuple[ArmProgress, ...]

    def gain(self, arm: ArmProgress, metric: str) -> Estimate:
        """An arm minus the single-layer one of its dimension, paired by seed."""
        single = next(other for other in self.arms if (other.method, other.dim) == (SLT, arm.dim))
        pairs = zip(arm.values(metric), single.values(metric), strict=True)
        return estimate([mine - other for mine, other in pairs])

    def columns(self) -> tuple[str, ...]:
        """Of `rows`."""
        head, loss = self.task.measures[0], self.task.measures[-1]
        return ("method", "d", "lr", head.label, loss.label, f"{head.label} gain", "blocks better")

    def rows(self) -> list[tuple[str, ...]]:
        """A row of `columns` for each arm."""
        head, loss = self.task.measures[0], self.task.measures[-1]
        rows = []
        for arm in self.arms:
            found = (str(estimate(arm.values(measure.name))) for measure in (head, loss))
            gain = ("", "")
            if arm.method != SLT:
                better, blocks = self._blocks(arm)
                gain = (self.gain(arm, head.name).signed(), f"{better} of {blocks}")
            rows.append((arm.method.name, str(arm.dim), f"{arm.learning_rate:g}", *found, *gain))
        return rows

    def _blocks(self, arm: ArmProgress) -> tuple[int, int]:
        """Blocks in which an arm's mean over seeds is better than the single layer's, and all."""
        single = next(other for other in self.arms if (other.method, other.dim) == (SLT, arm.dim))
        means = [_block_means(one, self.task) for one in (arm, single)]
        known = ~np.isnan(means[0]) & ~np.isnan(means[1])
        return int((means[0] > means[1])[known].sum()), int(known.sum())


def _block_means(arm: ArmProgress, task: Task) -> npt.NDArray[np.float64]:
    blocks = np.array([run.blocks for run in arm.runs], np.float64)
    return np.asarray(task.headline.quality(blocks.mean(axis=0)))


def compare_progressively(
    config: ProgressiveConfig,
    out: Path,
    *,
    jobs: int | None = None,
    report: Report = lambda what, done, total: None,
) -> ProgressiveResult:
    """Tune every arm, run it with every seed, and say what came of it.

    Called again it continues: finished runs are kept in ``out``, one sealed file each.

    Raises:
        ConfigError: the data set's split has no order, or the settings cannot be used.
        RunError: ``out`` holds another comparison, or no step size works for an arm.
    """
    data = PreparedDataset(config.base.data)
    _keep(config, fingerprint(data.schema), out)
    arms = [(method, dim) for dim in config.dims for method in config.methods()]
    tuning = [(method, dim, rate, 0) for method, dim in arms for rate in config.tried_rates]
    found = _run_all(config, tuning, out, jobs, report)
    headline = config.base.model.build_task().headline
    chosen = {}
    for method, dim in arms:
        tried = {
            rate: run.valid[headline.name]
            for rate in config.tried_rates
            if (run := found[method.name, dim, rate, 0]) is not None
        }
        if not tried:
            raise RunError(f"no learning rate works for {method.name}-d{dim}: all diverged")
        chosen[method.name, dim] = max(tried, key=lambda rate: headline.quality(tried[rate]))
    finals = [
        (method, dim, chosen[method.name, dim], seed)
        for method, dim in arms
        for seed in range(config.seeds)
    ]
    found = _run_all(config, finals, out, jobs, report)
    results = []
    for method, dim in arms:
        rate = chosen[method.name, dim]
        runs = [found[method.name, dim, rate, seed] for seed in range(config.seeds)]
        if any(run is None for run in runs):
            raise RunError(f"{method.name}-d{dim} diverged with step size {rate} and some seed")
        results.append(ArmProgress(method, dim, rate, tuple(run for run in runs if run)))
    return ProgressiveResult(config, config.base.model.build_task(), tuple(results))


_Work = tuple[Method, int, float, int]
_Found = dict[tuple[str, int, float, int], Progress | None]


def _keep(config: ProgressiveConfig, data: str, out: Path) -> None:
    """Refuse to mix runs of other settings or data; dimensions, k and seeds may be added."""
    note = out / "progressive.json"
    fixed = config.model_dump(
        mode="json",
        exclude={"dims": True, "inner_dims": True, "seeds": True, "base": {"data"}},
    )
    now = {"settings": fixed, "data": data}
    if note.exists() and read_sealed(note, RunError, f"remove {out}") != now:
        raise RunError(f"{out} holds a comparison of other settings or data; choose another --out")
    write_sealed(note, now)
    write_text(out / "progressive.yaml", config.to_yaml())


def _run_all(
    config: ProgressiveConfig,
    work: Sequence[_Work],
    out: Path,
    jobs: int | None,
    report: Report,
) -> _Found:
    """The runs, those that are there read, the others made; None of one that diverged."""
    found: _Found = {}
    missing = []
    for method, dim, rate, seed in work:
        file = out / "runs" / f"{method.name}-d{dim}-lr{rate:.12g}-seed{seed}.json"
        if file.exists():
            found[method.name, dim, rate, seed] = _read(file)
        else:
            missing.append((method, dim, rate, seed, file))
    if not missing:
        return found
    pool = worker_pool(jobs or usable_cores())
    try:
        futures = {
            pool.submit(progress, config.run(method, dim, rate, seed), config.block_rows): (
                (method.name, dim, rate, seed),
                file,
            )
            for method, dim, rate, seed, file in missing
        }
        report("training runs", len(found), len(work))
        for future in as_completed(futures):  # each is kept as soon as it is there
            key, file = futures[future]
            found[key] = run = future.result()
            write_sealed(file, {"diverged": True} if run is None else asdict(run))
            report("training runs", len(found), len(work))
    except BrokenProcessPool:
        raise RunError(
            "a process that trained was killed (out of memory?); what was finished is kept: give "
            "the same command again, with fewer --jobs"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _read(file: Path) -> Progress | None:
    values = read_sealed(file, RunError, "remove it, and give the command again")
    if values.get("diverged"):
        return None
    try:
        return TypeAdapter(Progress).validate_python(values)
    except ValidationError:
        raise RunError(f"{file}: damaged; remove it, and give the command again") from None
