"""What would MLET give me on my data? SLT and MLET over dimensions, trained alike."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import Field as Setting
from pydantic import PositiveFloat, PositiveInt

from mlet.atomic import write_text
from mlet.data import PreparedDataset
from mlet.errors import MletError, RunError, TrainingError
from mlet.experiments.results import ArmResult, Comparison, RunScores
from mlet.experiments.workers import worker_pool
from mlet.export import load_collapsed
from mlet.metrics import score
from mlet.settings import Settings
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.config import OptimizersConfig
from mlet.training.predict import predict

T = TypeVar("T")


class CompareConfig(Settings):
    """A grid of arms and what they share.

    Attributes:
        base: the run that every arm varies; its dim, inner_dim and seed are replaced.
        dims: embedding dimensions d, for SLT and MLET alike.
        inner_dims: inner dimensions k of the MLET arms.
        seeds: runs of each arm, with seeds 0, 1, ….
        learning_rates: step sizes of the tables tried, the same list for every arm; that of the
            dense layers keeps its ratio to it. Each arm keeps the one with the best mean validation
            AUC, those that diverge with any seed left out. Empty trains every arm with the base's
            step sizes.
        rare_below: a test row is rare if its rarest category has fewer training rows than this.
    """

    base: RunConfig
    dims: list[PositiveInt] = Setting(min_length=1)
    inner_dims: list[PositiveInt] = Setting(min_length=1)
    seeds: PositiveInt = 3
    learning_rates: list[PositiveFloat] = Setting(default_factory=list)
    rare_below: PositiveInt = 10


@dataclass(frozen=True)
class Arm:
    """One configuration: SLT (``inner_dim`` None) or MLET, at a step size (None: the base's)."""

    dim: int
    inner_dim: int | None
    learning_rate: float | None

    @property
    def name(self) -> str:
        """Unique in a comparison; names the run directories."""
        method = "slt" if self.inner_dim is None else f"mlet-k{self.inner_dim}"
        rate = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        return f"{method}-d{self.dim}{rate}"

    def config(self, base: RunConfig, seed: int) -> RunConfig:
        """The run of one seed."""
        optimizer = base.optimizer
        if self.learning_rate is not None:
            tables, dense = optimizer.tables, optimizer.dense
            ratio = dense.learning_rate / tables.learning_rate
            optimizer = OptimizersConfig(
                tables=tables.model_copy(update={"learning_rate": self.learning_rate}),
                dense=dense.model_copy(update={"learning_rate": self.learning_rate * ratio}),
            )
        size: dict[str, Any] = {"dim": self.dim, "inner_dim": self.inner_dim, "inner_dims": {}}
        return RunConfig(
            data=base.data,
            model=base.model.model_copy(update=size),
            optimizer=optimizer,
            training=base.training.model_copy(update={"seed": seed}),
        )


#: Told the number of finished runs, of all runs, and the name of the one just finished.
Report = Callable[[int, int, str], None]


def compare(
    config: CompareConfig,
    out: Path,
    *,
    jobs: int = 1,
    report: Report = lambda done, total, name: None,
) -> Comparison:
    """Train every arm with every seed, then score the kept ones on the test split.

    Finished runs in ``out`` are taken as they are and unfinished ones are resumed, so an
    interrupted comparison continues when it is called again.

    Args:
        config: the grid.
        out: directory for the runs and ``compare.json``.
        jobs: runs trained at once, each in a process of its own.
        report: told of progress.

    Raises:
        RunError: ``out`` holds runs with other settings, a run failed, or all step sizes of an arm
            diverged.
    """
    began = time.perf_counter()
    write_text(out / "compare.yaml", config.to_yaml())
    rates: list[float | None] = [*config.learning_rates] or [None]
    families = [(dim, inner) for dim in config.dims for inner in (None, *config.inner_dims)]
    arms = [[Arm(dim, inner, rate) for rate in rates] for dim, inner in families]
    runs = {
        _run_path(out, arm, seed): arm.config(config.base, seed)
        for family in arms
        for arm in family
        for seed in range(config.seeds)
    }
    with worker_pool(jobs) as pool:
        _train_all(runs, pool, report)
        diverged = [arm for family in arms for arm in family if _failure(out, arm, config.seeds)]
        chosen = [_best(out, family, diverged, config.seeds) for family in arms]
        data = PreparedDataset(config.base.data)
        rare = data.rarest_counts("test") < config.rare_below
        scores = _score_all(out, chosen, config, rare, pool)
    results = []
    for arm in chosen:
        summary = RunDirectory(_run_path(out, arm, 0)).summary()
        rate = arm.learning_rate or config.base.optimizer.tables.learning_rate
        results.append(ArmResult(arm.dim, arm.inner_dim, rate, scores[arm], summary.model_bytes))
    result = Comparison(
        schema=data.schema,
        base=config.base,
        arms=tuple(results),
        tried_rates=tuple(config.learning_rates),
        diverged=tuple(arm.name for arm in diverged),
        rare_below=config.rare_below,
        rare_rows=int(rare.sum()),
        jobs=jobs,
        seconds=time.perf_counter() - began,
        machine=machine(),
    )
    write_text(out / "compare.json", result.to_json())
    return result


def _run_paths(out: Path, arm: Arm, seeds: int) -> list[Path]:
    return [_run_path(out, arm, seed) for seed in range(seeds)]


def _run_path(out: Path, arm: Arm, seed: int) -> Path:
    return out / "runs" / f"{arm.name}-seed{seed}"


def machine() -> str:
    """What it runs on, in words."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def _train_one(config: RunConfig, path: Path) -> None:
    """Train or continue one run; in a worker process."""
    run = RunDirectory(path)
    if run.config_file.exists() and run.config() != config:
        raise RunError(f"{path} holds a run with other settings; choose another --out")
    # The user asked for every k of the grid, k ≤ d included; once is enough to be told.
    warnings.filterwarnings("ignore", message=".*inner_dim=.* is not above embedding_dim=")
    try:
        if run.config_file.exists():
            resume(path)
        else:
            train(config, path)
    except TrainingError:
        pass  # the run keeps the reason; a step size that diverges loses to those that do not


def _train_all(runs: dict[Path, RunConfig], pool: Executor, report: Report) -> None:
    report(0, len(runs), "")
    tasks = {path: partial(_train_one, config, path) for path, config in runs.items()}
    for done, (path, _) in enumerate(_completed(tasks, pool), start=1):
        report(done, len(runs), path.name)


def _score_all(
    out: Path, arms: list[Arm], config: CompareConfig, rare: np.ndarray, pool: Executor
) -> dict[Arm, tuple[RunScores, ...]]:
    """The test scores of every arm, by seed."""
    tasks = {
        path: partial(_score, path, seed, config.base.data, rare)
        for arm in arms
        for seed, path in enumerate(_run_paths(out, arm, config.seeds))
    }
    scores = dict(_completed(tasks, pool))
    return {arm: tuple(scores[path] for path in _run_paths(out, arm, config.seeds)) for arm in arms}


def _completed(tasks: Mapping[Path, Callable[[], T]], pool: Executor) -> Iterator[tuple[Path, T]]:
    """Do something for every run in worker processes, yielding each as it is done."""
    try:
        futures = {pool.submit(task): path for path, task in tasks.items()}
        for future in as_completed(futures):
            path, error = futures[future], future.exception()
            if isinstance(error, MletError):
                raise RunError(f"run {path.name}: {error}")
            yield path, future.result()
    except BrokenProcessPool:
        raise RunError(
            "a training process was killed (out of memory?); run the same command again to "
            "continue, with fewer --jobs"
        ) from None
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _failure(out: Path, arm: Arm, seeds: int) -> str | None:
    """Why an arm diverged, with the first seed that did."""
    runs = (RunDirectory(path) for path in _run_paths(out, arm, seeds))
    return next((run.failure for run in runs if run.failure is not None), None)


def _best(out: Path, family: list[Arm], diverged: list[Arm], seeds: int) -> Arm:
    """The arm with the best step size on validation, of those that no seed diverged with."""
    kept = [arm for arm in family if arm not in diverged]
    if not kept:
        raise RunError(f"no learning rate works: {_failure(out, family[0], seeds)}")
    return max(kept, key=lambda arm: _mean_validation_auc(out, arm, seeds))


def _mean_validation_auc(out: Path, arm: Arm, seeds: int) -> float:
    summaries = [RunDirectory(path).summary() for path in _run_paths(out, arm, seeds)]
    return float(np.mean([summary.valid["auc"] for summary in summaries]))


def _score(path: Path, seed: int, data: Path, rare: np.ndarray) -> RunScores:
    """Score one run's collapsed model, what would be served, on the test split; in a worker."""
    run = RunDirectory(path)
    summary = run.summary()
    model, _, _ = load_collapsed(run.model_file)
    columns = PreparedDataset(data).split("test")
    probabilities = predict(model, columns)
    labels = np.asarray(columns.labels)
    return RunScores(
        seed=seed,
        test=score(labels, probabilities),
        rare=score(labels[rare], probabilities[rare]),
        valid_auc=summary.valid["auc"],
        steps=summary.steps,
        seconds=summary.seconds,
    )
