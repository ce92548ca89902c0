"""A part of the campaign of docs/reliability.md: no damaged file is taken, or takes mlet down."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    program = Path(__file__).with_name("campaign.py")
    done = subprocess.run(
        [sys.executable, program, "--cases", "108", "--seed", "7"],
        capture_output=True, text=True, cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| run, ") == 4
