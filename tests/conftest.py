"""Data and commands shared by the tests."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

# A test process for every core runs beside others: more threads of any command would only wait for
# one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What compiles mlet for every command anew compiles it a thousand times.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Of what its users do, MLflow would tell its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import torch

# Without a GPU, Triton's interpreter runs the CUDA kernels; it must be asked before anybody, as
# TorchRec does, imports Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest

from mlet.data import SplitRule, prepare
from mlet.data.synthetic import SyntheticConfig, SyntheticSource

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("MLET_DATA", ROOT.parent / "shared" / "data")).resolve()


def pytest_configure(config: pytest.Config) -> None:
    """Forget compiled kernels that are older than a source file: they may call what has changed."""
    if hasattr(config, "workerinput"):
        return
    engine = ROOT / "src" / "mlet" / "engine" / "cpu"
    newest = max(path.stat().st_mtime for path in engine.glob("*.py"))
    compiled = list(engine.glob("__pycache__/*.nb?"))
    if any(path.stat().st_mtime < newest for path in compiled):
        for path in compiled:
            path.unlink()


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no {path}: set MLET_DATA to the folder of the real data sets")
    return path


@pytest.fixture(scope="session")
def movielens() -> Path:
    return _shared("movielens-small")


@pytest.fixture(scope="session")
def criteo_sample() -> Path:
    return _shared("criteo-sample/train.txt")


@pytest.fixture(scope="session")
def debdeps() -> Path:
    return _shared("debdeps/debdeps.parquet")


@pytest.fixture(scope="session")
def criteo80k() -> Path:
    return _shared("criteo80k/criteo80k.parquet")


@pytest.fixture(scope="session")
def tennis() -> Path:
    return _shared("tennis/tennis.parquet")


@pytest.fixture(scope="session")
def small_config() -> SyntheticConfig:
    return SyntheticConfig(rows=3_000, cardinalities=[300, 50, 7], dense=2, rank=3, clusters=4)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory, small_config: SyntheticConfig) -> Path:
    """A prepared synthetic data set of 3 000 rows."""
    path = tmp_path_factory.mktemp("data") / "small"
    prepare(SyntheticSource(small_config), path, split=SplitRule(valid=0.15, test=0.25))
    return path


Rewrite = Callable[[Path, str, np.ndarray], None]


@pytest.fixture(scope="session")
def rewrite() -> Rewrite:
    """Put other values into a column of a prepared data set, as if it had been prepared so."""

    def write(data: Path, column: str, values: np.ndarray) -> None:
        np.save(data / column, values)
        schema = json.loads((data / "schema.json").read_text())
        schema["checksums"][column] = zlib.crc32((data / column).read_bytes())
        del schema["seal"]
        (data / "schema.json").write_text(json.dumps(schema))

    return write


Mlet = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def mlet_command() -> Path:
    """The installed console script."""
    command = Path(sys.executable).parent / "mlet"
    assert command.exists(), "install the package first: make test does"
    return command


@pytest.fixture(scope="session")
def warm(mlet_command: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of commands that run in a process which need not import anything any more.

    ``mlet`` is the installed script; ``python FILE`` runs a file.
    """
    folder = tmp_path_factory.mktemp("warm")
    client = f"-S -E {shlex.quote(str(ROOT / 'tests' / 'warm' / 'client.py'))} {folder}/socket"
    cold = shlex.quote(sys.executable)
    # What else is to be found when importing is found by a process that begins anew.
    same = f'[ "${{PYTHONPATH-}}" = {shlex.quote(os.environ.get("PYTHONPATH", ""))} ]'
    installed = shlex.quote(str(mlet_command))
    for name, script in (
        ("mlet", f'{same} || exec {installed} "$@"\nexec {cold} {client} {installed} "$@"'),
        (
            "python",
            f'{same} || exec {cold} "$@"\n'
            f'case "${{1:--}}" in -*) exec {cold} "$@";; *) exec {cold} {client} "$@";; esac',
        ),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "warm" / "server.py", folder / "socket"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline(), "it could not start: see above"
    yield folder
    server.kill()
    server.wait()


@pytest.fixture
def mlet(warm: Path, tmp_path: Path) -> Mlet:
    """Run ``mlet ARGS`` in a scratch directory and return what it printed."""

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [warm / "mlet", *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result

    return run
