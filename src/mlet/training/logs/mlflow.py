"""Metrics for MLflow."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlet.atomic import write_text
from mlet.errors import RunError
from mlet.reading import first_line, reading
from mlet.training.config import RunConfig
from mlet.training.logs.log import Status, hyperparameters

#: In a run's directory: which of MLflow's runs it is.
_FILE = "mlflow.json"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
#: Parameters that are sent at once, which is MLflow's limit.
_AT_ONCE = 100


class MLflowLog:
    """A run of MLflow's, in the store that its URI says: metrics, and the settings as parameters.

    The experiment is that of the environment variable ``MLFLOW_EXPERIMENT_NAME``, as in all of
    MLflow, or its own default.
    """

    def __init__(self, root: Path, uri: str | None, config: RunConfig) -> None:
        """Begin, or go on with what ``root`` says; ``uri`` None is MLflow's own.

        Raises:
            RunError: the store cannot be reached, or does not know the run.
        """
        from mlflow.tracking import MlflowClient, get_tracking_uri

        self._last: dict[str, int] = {}
        kept = _read(root / _FILE)
        self._uri: str = kept.get("tracking_uri") or uri or get_tracking_uri()
        parameters = hyperparameters(config)
        with self._asking():
            self._client: Any = MlflowClient(tracking_uri=self._uri)
            self._run: str = kept["run_id"] if kept else self._begin(root, parameters)
            if kept:
                self._go_on(parameters)
        if not kept:
            # Who logs in by the address is not written down.
            told = None if _login(self._uri) else self._uri
            write_text(root / _FILE, json.dumps({"tracking_uri": told, "run_id": self._run}))

    def _begin(self, root: Path, parameters: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = self._client.get_experiment_by_name(name)
        id_ = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tags = {"mlet.run": str(root.resolve())}
        run: str = self._client.create_run(id_, run_name=root.resolve().name, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in parameters.items()]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(run, params=params[first : first + _AT_ONCE])
        return run

    def _go_on(self, parameters: Mapping[str, Any]) -> None:
        """Parameters stay as they were: those that are others from now on are tags."""
        then = self._client.get_run(self._run).data.params
        self._client.update_run(self._run, status="RUNNING")
        for key, value in parameters.items():
            if then.get(key) != str(value):
                self._client.set_tag(self._run, f"continued.{key}", str(value))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Log`; what is there of steps that were made again stays as it is."""
        from mlflow.entities import Metric

        now = int(1_000 * time.time())
        new = [
            Metric(key, value, now, step)
            for key, value in values.items()
            if step > self._last_step(key)
        ]
        if new:
            with self._asking():
                self._client.log_batch(self._run, metrics=new)

    def _last_step(self, key: str) -> int:
        """The last that is known of a metric when the log was opened."""
        if key not in self._last:
            history = self._client.get_metric_history(self._run, key)
            self._last[key] = max((one.step for one in history), default=-1)
        return self._last[key]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns what goes wrong into one line, and says nothing else of the store."""
        logger = logging.getLogger("mlflow")
        before = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        except Exception as error:  # of its stores' libraries, too, which share no class
            problem = f"the store {self._uri} cannot be used ({first_line(error)})"
            if login := _login(self._uri):
                problem = problem.replace(login, "")
            raise RunError(
                f"log 'mlflow': {problem}; name one that can, as mlflow=sqlite:///mlflow.db"
            ) from None
        finally:
            logger.setLevel(before)

    def close(self, status: Status) -> None:
        """See `Log`."""
        with self._asking():
            self._client.set_terminated(self._run, _STATUS[status])


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    with reading(file, RunError, "remove it: the run goes on in a new log"):
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {"tracking_uri": kept["tracking_uri"], "run_id": kept["run_id"]}


def _login(uri: str) -> str:
    """Who logs in by an address, as ``name:password@``; empty of most."""
    name, at, _ = urlsplit(uri).netloc.rpartition("@")
    return name + at
