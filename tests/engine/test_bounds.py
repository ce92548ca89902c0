"""The CPU kernels once with every index checked: nothing is read or written out of bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CHECKED = {**os.environ, "MLET_BOUNDS_CHECK": "1"}


def test_the_check_is_on_when_asked_for() -> None:
    code = (
        "import numpy as np\n"
        "from mlet.engine.cpu.compile import kernel\n"
        "@kernel\n"
        "def read(values, place): return values[place]\n"
        "try: read(np.zeros(3), 5)\n"
        "except IndexError: print('checked')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=CHECKED, capture_output=True, text=True)
    assert done.stdout.strip() == "checked", done.stderr


@pytest.mark.slow
def test_the_suite_of_the_kernels_stays_within_bounds() -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-k", "not cuda", "-p", "no:cacheprovider",
            TESTS / "engine" / "test_backends.py", TESTS / "optim" / "test_fused.py",
        ],
        env=CHECKED, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3_000:]
