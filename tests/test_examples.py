"""The examples with real clients: each trains with the library's own trainer and checks itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENTS = {
    "deepctr_torch_deepfm.py": "deepctr_torch",
    "fuxictr_deepfm.py": "fuxictr",
    "torchrec_dlrm.py": "torchrec",
    "huggingface_bert.py": "transformers",
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(CLIENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_example(name: str, tmp_path: Path) -> None:
    if find_spec(CLIENTS[name]) is None:
        pytest.skip(f"{CLIENTS[name]} is not installed: make test installs the extra 'clients'")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLES / name],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    scores = re.search(r"between trained and plain scores: (\S+)", result.stdout)
    identity = re.search(r"convert and collapse: (\S+)", result.stdout)
    assert scores is not None
    assert identity is not None
    assert float(scores[1]) <= 1e-6
    assert float(identity[1]) <= 1e-6
