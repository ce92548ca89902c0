"""One run of a study, in a worker process: train, collapse, score."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlet.atomic import atomic_path
from mlet.data import PreparedDataset
from mlet.errors import RunError, TrainingError
from mlet.export import load_collapsed
from mlet.nn.compression import Precision
from mlet.reading import reading
from mlet.studies.halving import Halving, HalvingObserver, Pruned, qualities
from mlet.studies.precisions import precision_points
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.inner_dims import with_inner_dims
from mlet.training.observer import Observer
from mlet.training.predict import predict
from mlet.training.run import Summary

#: Settings in names of folders.
_SHORT = {
    "learning_rate": "l",
    "weight_decay": "w",
    "damping": "damping",
    "init_scale": "init",
    "dense_learning_rate": "dense",
    "dim": "d",
    "dim_exponent": "a",
    "inner_dim": "k",
    "co_occurrence": "c",
    "min_count": "m",
    "rare_rows": "r",
    "table_bias": "b",
}


@dataclass(frozen=True)
class Outcome:
    """What a worker reports.

    Attributes:
        valid: the headline metric on validation; None if training failed or was given up.
        reason: why it failed.
        validations: the headline metric at each validation, higher is better; noted where trials
            are halved.
        points: what the run's tables give at some precisions; see `precision_points`.
    """

    valid: float | None
    reason: str | None
    validations: tuple[float, ...] = ()
    points: tuple[dict[str, Any], ...] = ()


def run_path(out: Path, arm: str, setting: Mapping[str, float], seed: int) -> Path:
    """Where a run is kept; equal runs, as of a tuning trial and a final run, are the same one."""
    values = "-".join(f"{_SHORT[name]}{value:.6g}" for name, value in sorted(setting.items()))
    return out / "runs" / arm / f"{values}-seed{seed}"


def train_and_score(
    config: RunConfig,
    path: Path,
    *,
    precisions: Sequence[Precision],
    resamples: int,
    device: str,
    halving: Halving | None = None,
    wide: RunConfig | None = None,
    valid_precisions: Sequence[Precision] = (),
) -> Outcome:
    """Train a run or continue it, to where ``halving`` ends it; score its collapsed model on the
    test split at some precisions, which are those of a final run, and on validation at others. A
    run that is cut from a wide one begins where that ends, and is halved by it."""
    # The user asked for every k of the grid, k ≤ d included.
    warnings.filterwarnings("ignore", message=".*inner_dim=.* is not above embedding_dim=")
    config = with_inner_dims(config)
    task = config.model.build_task()
    stages = [(config, path)]
    if wide is not None:
        wide_path = path.with_name(f"{path.name}-wide")
        stages = [
            (wide, wide_path),
            (config.model_copy(update={"start": wide_path.resolve()}), path),
        ]
    first = RunDirectory(stages[0][1])
    observer = HalvingObserver(halving, first, task) if halving else None
    ended = False
    try:
        for stage, place in stages:
            summary = _train(stage, place, device, observer)
            observer = None
    except TrainingError as error:
        return Outcome(None, str(error))
    except Pruned:
        ended = True
        return Outcome(None, None, tuple(qualities(first, task)))
    finally:
        for _, place in stages:
            run = RunDirectory(place)
            if ended or run.finished or run.failure is not None:
                shutil.rmtree(place / "checkpoints", ignore_errors=True)
    for precision in precisions:
        score_run(path, config.data, resamples, precision)
    validations = tuple(qualities(first, task)) if halving else ()
    points = precision_points(path, config.data, valid_precisions)
    return Outcome(summary.valid[task.headline.name], None, validations, points)


def _train(config: RunConfig, path: Path, device: str, observer: Observer | None) -> Summary:
    """Train a run, or go on with it."""
    if not RunDirectory(path).config_file.exists():
        training = config.training.model_copy(update={"device": device})
        return train(config.model_copy(update={"training": training}), path, observer)
    # It goes on as it was begun, whichever device it is offered and wherever its data lies now, as
    # on another machine: that it is the same data is checked.
    check_run(config, path)
    return resume(path, observer, data=config.data)


def _settings(config: RunConfig) -> dict[str, Any]:
    """What determines the numbers of a run."""
    return config.model_dump(
        mode="json", exclude={"data": True, "start": True, "training": {"device"}}
    )


@dataclass(frozen=True)
class TestScores:
    """The collapsed model's predictions for the test split.

    Attributes:
        predictions: (N,) float32.
        resamples: (samples, M) metrics of resampled rows, paired between runs; see
            `mlet.task.Task.resampled`.
        model_bytes: of what is served; None where the run's summary says it.
    """

    predictions: npt.NDArray[np.float32]
    resamples: npt.NDArray[np.float64]
    model_bytes: int | None = None


def _scores_file(path: Path, precision: Precision) -> Path:
    return path / ("test.npz" if precision == "float32" else f"test-{precision}.npz")


def check_run(config: RunConfig, path: Path) -> None:
    """Refuse a run that is not the one which a study keeps there.

    Raises:
        RunError: it has other settings.
    """
    if _settings(RunDirectory(path).config()) != _settings(with_inner_dims(config)):
        raise RunError(
            f"{path} holds a run with other settings; put back the one that was there, or choose "
            f"another --out"
        )


def is_lost(path: Path, precisions: Sequence[Precision]) -> bool:
    """Whether a finished run is there no more, or has neither a model nor what
    was to be predicted with it."""
    run = RunDirectory(path)
    scored = bool(precisions) and all(_scores_file(path, one).exists() for one in precisions)
    return not run.finished or not (scored or run.model_file.exists())


def score_run(path: Path, data: Path, resamples: int, precision: Precision) -> None:
    """Score a finished run's collapsed model on the test split, unless that is done."""
    if _scores_file(path, precision).exists():
        return
    columns = PreparedDataset(data).split("test")
    model, _, _ = load_collapsed(RunDirectory(path).model_file)
    served = model if precision == "float32" else model.collapse(precision)
    predictions = predict(served, columns).astype(np.float32)
    labels = columns.labels[model.task.label]
    weights = columns.weights
    draws = model.task.resampled(labels, predictions, samples=resamples, weights=weights)
    # Of what is not quantized the run says it: some methods are kept smaller than they compute.
    own = precision == RunDirectory(path).precision() == "float32"
    size = sum(tensor.nbytes for tensor in served.state_dict().values())
    if own:
        size = RunDirectory(path).summary().model_bytes
    with atomic_path(_scores_file(path, precision)) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            probabilities=predictions,
            resamples=draws,
            model_bytes=size,
            run=RunDirectory(path).seal(),
        )


def read_test_scores(path: Path, precision: Precision = "float32") -> TestScores:
    """What `score_run` left of a run.

    Raises:
        RunError: the file is missing or damaged.
    """
    file = _scores_file(path, precision)
    with reading(file, RunError, "remove it and give the command again: it is made from the model"):
        if not zipfile.is_zipfile(file):  # NumPy would take it for pickled code, and say so
            raise ValueError("no NumPy archive")
        with np.load(file) as arrays:
            size = int(arrays["model_bytes"]) if "model_bytes" in arrays else None
            scores = TestScores(arrays["probabilities"], arrays["resamples"], size)
            run = int(arrays["run"]) if "run" in arrays else None  # mlet 0.1 kept none
        if run not in (None, RunDirectory(path).seal()):
            raise ValueError("of another run")
        return scores


def tidy(out: Path, arm: str, kept: set[Path]) -> None:
    """Remove the models of an arm's settings that were not chosen; their figures stay."""
    for model in (out / "runs" / arm).glob("*/model.safetensors"):
        if model.parent not in kept:
            model.unlink()
