"""``make bench`` measures every target; in small, so that only its shape is checked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_targets_are_measured_and_judged(tmp_path: Path) -> None:
    pytest.importorskip("fuxictr")
    answer = tmp_path / "bench.json"
    command = [
        sys.executable, ROOT / "benchmarks" / "targets.py",
        "--rounds", "2", "--rows", "3000", "--small", "--json", answer,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert answer.exists(), result.stdout + result.stderr
    rows = json.loads(answer.read_text())
    assert {"name", "value", "must", "aim", "pass"} <= set(rows[0])
    assert len(rows) == 9
    assert sum(row["must"] is not None for row in rows) == 8
    for row in rows:
        if row["must"] is not None:
            meets = row["value"] >= row["must"] if row["at_least"] else row["value"] <= row["must"]
            assert row["pass"] == meets
        assert row["name"].split(",")[0][:20] in " ".join(result.stdout.split())
    # A missed "must" fails the command.
    assert result.returncode == (0 if all(row["pass"] for row in rows) else 1)
