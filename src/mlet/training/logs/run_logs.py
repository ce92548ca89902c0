"""All logs of a run: what is written to them, and when."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from mlet.data import PreparedDataset
from mlet.export import load_collapsed
from mlet.reading import first_line
from mlet.training.config import RunConfig
from mlet.training.logs.log import Log, Status
from mlet.training.logs.mlflow import MLflowLog
from mlet.training.logs.places import places
from mlet.training.logs.tensorboard import TensorBoardLog
from mlet.training.predict import served_scores

#: Steps whose mean loss is logged, beside those up to each validation and checkpoint.
_STEPS = 100


class RunLogs:
    """What ``log`` says of a run; within it, training. Without any it costs nothing.

    ``train/loss`` and ``train/rows_per_second`` are of the steps since they were last logged, at
    every hundredth step and before every validation and checkpoint; ``valid/…`` are the metrics of
    validations; at the end ``best/…`` are those of the weights that are served, with
    ``best/step``, and ``test/…`` theirs on the test split, as ``mlet evaluate`` has them.
    """

    def __init__(self, config: RunConfig, root: Path, done: int) -> None:
        """Open them; ``done`` steps are behind the run.

        Raises:
            RunError: one cannot be used.
        """
        self._logs: dict[str, Log] = {}
        metrics = [metric.name for metric in config.model.build_task().metrics]
        for name, place in places(config).items():
            if name == "tensorboard":
                folder = Path(place) if place else root / name
                names = [f"{split}/{metric}" for split in ("best", "test") for metric in metrics]
                self._logs[name] = TensorBoardLog(folder, config, done, names)
            else:
                self._logs[name] = MLflowLog(root, place, config)
        self._step, self._loss, self._steps, self._rows = done, 0.0, 0, 0
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        status: Status = "finished" if kind is None else "failed"
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            status = "interrupted"
        self._each(lambda log: log.close(status))

    def step(self, loss: float, rows: int) -> None:
        """One step was made."""
        self._step += 1
        self._loss, self._steps, self._rows = self._loss + loss, self._steps + 1, self._rows + rows
        if self._step % _STEPS == 0:
            self.flush()

    def flush(self) -> None:
        """Log the steps that were not yet: whoever resumes begins with none."""
        if self._steps and self._logs:
            seconds = max(time.perf_counter() - self._began, 1e-9)
            means = {"loss": self._loss / self._steps, "rows_per_second": self._rows / seconds}
            self._write("train", means)
        self._loss, self._steps, self._rows = 0.0, 0, 0
        self._began = time.perf_counter()

    def validation(self, scores: Mapping[str, float]) -> None:
        """A validation was made."""
        self._write("valid", scores)
        self._began = time.perf_counter()

    def end(self, model: Path, data: PreparedDataset, best: Mapping[str, float]) -> None:
        """Training has come to its end.

        Args:
            model: the collapsed model's file.
            data: the run's.
            best: ``step`` and metrics of its weights.
        """
        if not self._logs:
            return
        self._write("best", best)
        served, _, _ = load_collapsed(model)
        test = data.split("test")
        labels = test.labels[served.task.label]
        self._write("test", served.task.score(labels, served_scores(served, test)))

    def _write(self, group: str, values: Mapping[str, float]) -> None:
        named = {f"{group}/{name}": v for name, v in values.items() if math.isfinite(v)}
        self._each(lambda log: log.scalars(named, self._step))

    def _each(self, do: Callable[[Log], None]) -> None:
        for name in list(self._logs):
            self._in(name, do)

    def _in(self, name: str, do: Callable[[Log], None]) -> None:
        """In one log. That it fails, as a server that is down, is no reason to stop training."""
        try:
            do(self._logs[name])
        except Exception as error:  # of other libraries, which share no class
            del self._logs[name]
            warnings.warn(
                f"at step {self._step} log {name!r} cannot be written to, and training goes on "
                f"without it: {first_line(error)}",
                UserWarning,
                stacklevel=2,
            )
