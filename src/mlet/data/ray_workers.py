"""Ray's tasks as the workers of a preparation, on this machine or on a cluster.

Of Ray only its tasks are used: which rows are whose, and what is made of them, is said by
`mlet.data`. Data does not pass through Ray either, but through files, which every machine of a
cluster must see under the same names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import joblib

from mlet.data.workers import Promise, WorkerDied
from mlet.errors import ConfigError, MletError, RunError
from mlet.reading import first_line

Result = TypeVar("Result")

#: How often a task is begun again whose worker died.
_AGAIN = 2
#: Ray's least is 75 MB; what passes through it are names and numbers of rows.
_STORE_BYTES = 100_000_000
#: Ray's sockets lie in its folder, below up to so many characters, where names may have 107.
_SOCKET_NAME = 70
#: Seconds that workers have to be gone.
_GRACE = 20
#: Seconds that a cluster has to answer.
_KNOCK = 10
#: Each worker is one of many: one thread for Polars. They are what the machine is to do, where Ray
#: gives them what others leave. No reports of Ray's to its makers.
_SETTINGS = {
    "POLARS_MAX_THREADS": "1",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayWorkers:
    """See `mlet.data.workers.Workers`; a context, at whose end nothing of it runs.

    A program that has called ``ray.init`` itself keeps its connection, which is used.

    Args:
        address: of a cluster, as ``ray.init`` takes it; None starts one of this machine's
            processors for the time being.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    here = False

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._begun: dict[Any, None] = {}  # in order
        self._folder: Path | None = None
        self._own = False

    def __enter__(self) -> RayWorkers:
        with _settings():
            try:
                import ray
            except ImportError:
                raise ConfigError("Ray is not installed; pip install 'mlet[ray]'") from None
            if not ray.is_initialized():
                self._start(ray)
        self.count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": _AGAIN}
        if self._folder is None:  # its workers have not the settings of this process
            options["runtime_env"] = {"env_vars": {"POLARS_MAX_THREADS": "1"}}
        self._ray, self._call = ray, ray.remote(**options)(_call)
        return self

    def _start(self, ray: Any) -> None:
        how: dict[str, Any] = {"address": self._address}
        if self._address is None:
            self._folder = Path(tempfile.mkdtemp(prefix="mlet-ray-"))
            how = {
                "address": "local",
                "num_cpus": joblib.cpu_count(),
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
            }
            if len(str(self._folder)) + _SOCKET_NAME < 107:
                how["_temp_dir"] = str(self._folder)
        before = signal.getsignal(signal.SIGTERM)
        try:
            _knock(self._address or "")
            ray.init(**how, log_to_driver=False, logging_level=logging.CRITICAL)
        except BaseException as error:  # each failure of another kind
            ray.shutdown()
            self._remove_folder()
            if not isinstance(error, Exception):
                raise
            if self._address is None:
                raise ConfigError(
                    f"--on ray: Ray did not start on this machine ({first_line(error)}); try "
                    f"again, or prepare without it, to the same bytes"
                ) from None
            raise ConfigError(
                f"--on ray: no cluster at {self._address} ({first_line(error)}); is the address "
                f"right, and does Ray run there with the same versions of Python and Ray?"
            ) from None
        finally:
            # Ray would end the process without a word; mlet's own way cleans up.
            with contextlib.suppress(ValueError):  # of another thread than the first
                signal.signal(signal.SIGTERM, before)
        self._own = True

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._own:
            self._ray.shutdown()
        self._remove_folder()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Promise[Result]:
        """See `Workers`."""
        task = self._call.remote(os.getcwd(), function, *arguments)
        self._begun[task] = None

        def result() -> Result:
            exceptions = self._ray.exceptions
            try:
                found: Result = self._ray.get(task)
                self._begun.pop(task, None)
            except exceptions.RayTaskError as error:
                if isinstance(error.cause, (MletError, OSError)):
                    raise error.cause from None
                raise
            except exceptions.RayError as error:
                raise WorkerDied(
                    f"a worker of Ray died {_AGAIN + 1} times over the same rows "
                    f"({type(error).__name__}: {first_line(error)}); most often its machine has "
                    f"too little memory for as many workers as processors"
                ) from None
            return found

        return result

    def shared(self, value: Any) -> Any:
        """See `Workers`."""
        return self._ray.put(value)

    def stop(self) -> None:
        """See `Workers`."""
        ray, begun = self._ray, list(self._begun)
        self._begun = {}
        if begun and ray.is_initialized():
            _, left = ray.wait(begun, num_returns=len(begun), timeout=0, fetch_local=False)
            for task in left:
                ray.cancel(task, force=True)
            if left:
                ray.wait(left, num_returns=len(left), timeout=_GRACE, fetch_local=False)

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _knock(address: str) -> None:
    """Fail at once where nobody listens, which Ray takes minutes for."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _KNOCK).close()


def _call(folder: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in a folder, where relative names are those of who asked."""
    try:
        os.chdir(folder)
    except OSError:
        raise RunError(
            f"{folder}: not on {socket.gethostname()}, where a worker of Ray runs; start mlet in a "
            f"folder that every machine of the cluster has under this name"
        ) from None
    return function(*arguments)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """The environment that Ray's processes inherit."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update({name: before[name] or value for name, value in _SETTINGS.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
