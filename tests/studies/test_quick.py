"""The quick study gives again what docs/results.md says of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def committed(model: str, title: str = "Quick") -> dict[tuple[str, int], tuple[float, float]]:
    """Mean and margin of the test AUC of every arm in the documentation's table."""
    text = (ROOT / "docs" / "results.md").read_text()
    table = text.split(f"### {title}: {model}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(
        r"^\| ([\w-]+) \| (\d+) \| [^|]+ \| ([\d.]+) ±([\d.]+) \|", table, re.MULTILINE
    )
    return {(method.lower(), int(dim)): (float(auc), float(by)) for method, dim, auc, by in rows}


@pytest.mark.slow
def test_the_quick_study_reproduces_the_committed_table(mlet_command: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    done = subprocess.run(
        [mlet_command, "sweep", "studies/quick.yaml", "--jobs", "2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    panels = json.loads((tmp_path / "quick" / "study.json").read_text())["panels"]
    assert [panel["model"] for panel in panels] == ["dlrm", "deepfm"]
    for panel in panels:
        expected = committed(panel["model"])
        assert len(expected) == len(panel["arms"]) == 9
        for arm in panel["arms"]:
            mean, margin = expected[arm["method"], arm["dim"]]
            found = arm["test"]["auc"]
            # Two estimates of the same: their intervals overlap.
            assert abs(found["mean"] - mean) <= margin + found["margin"], (panel["model"], arm)
            assert arm["tuning"]["tried"] == 6


@pytest.mark.slow
def test_the_quick_study_on_real_data_reproduces_its_table(
    mlet_command: Path, debdeps: Path, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    done = subprocess.run(
        [mlet_command, "sweep", "studies/real-quick.yaml", "--jobs", "2"],
        cwd=tmp_path, env={**os.environ, "MLET_DATA": str(debdeps.parents[1])},
        capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (panel,) = json.loads((tmp_path / "real-quick" / "study.json").read_text())["panels"]
    expected = committed("dlrm", "Real, quick")
    assert len(expected) == len(panel["arms"]) == 4
    for arm in panel["arms"]:
        mean, margin = expected[arm["method"], arm["dim"]]
        found = arm["test"]["auc"]
        assert abs(found["mean"] - mean) <= margin + found["margin"], arm
