"""Worker processes: quick to start, able to do all that a process of their own could."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlet.studies.processes import worker_pool


def imported() -> set[str]:
    return set(sys.modules)


def kernels_may_use_threads() -> bool:
    from mlet.engine.cpu import threads

    return threads._process == os.getpid()


@pytest.mark.slow
def test_workers_have_imported_what_training_needs_and_may_use_threads() -> None:
    with worker_pool(1) as pool:
        first = pool.submit(imported).result()
        if "forkserver" in multiprocessing.get_all_start_methods():
            assert {"torch._dynamo", "sklearn.metrics", "numba", "mlet.training"} <= first
        assert pool.submit(kernels_may_use_threads).result()


SCRIPT = """
import sys
from pathlib import Path
from mlet.studies import StudyConfig, sweep

study = StudyConfig.parse({
    "datasets": {"clicks": {"prepared": sys.argv[1]}},
    "models": {"dlrm": {"bottom_mlp": [8], "top_mlp": [8]}},
    "optimizers": ["adagrad"],
    "dims": [2],
    "seeds": 1,
    "tuning": {"trials": 1},
    "training": {"epochs": 1},
}, "study")
"""


@pytest.mark.slow
def test_a_script_that_workers_would_run_again_is_told_the_remedy(
    small_data: Path, tmp_path: Path
) -> None:
    def run(call: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "script.py").write_text(SCRIPT + call)
        command = [sys.executable, "script.py", small_data]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    call = "print(len(sweep(study, Path('out')).panels))"
    done = run(call)
    assert done.returncode == 1
    assert 'calls mlet under `if __name__ == "__main__":`' in done.stderr
    done = run(f"if __name__ == '__main__': {call}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n", "and nothing was counted as failed"
