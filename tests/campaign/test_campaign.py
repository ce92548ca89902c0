"""A part of the campaign of docs/reliability.md: neither damage nor kills are taken in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "options", "rows"),
    [
        ("campaign.py", ("--cases", "63", "--seed", "7"), 23),
        ("kill.py", ("--kills", "16", "--seed", "7"), 16),
    ],
)
def test_no_fault(tmp_path: Path, program: str, options: tuple[str, ...], rows: int) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(program), *options],
        capture_output=True, text=True, cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) == rows + 3
