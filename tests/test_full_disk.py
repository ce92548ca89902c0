"""A disk that is full: one line, exit code 2, nothing lost.

A limit on the size of files stands in for it: the system refuses the same writes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlet.atomic import atomic_path, write_text
from mlet.data import PreparedDataset
from mlet.errors import RunError
from mlet.models import DLRMConfig
from mlet.studies import StudyConfig, sweep
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.config import TrainingConfig

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["mlet", *sys.argv[2:]]
from mlet.cli import main
main()
"""


def limited(size: int, *arguments: object) -> str:
    """Run ``mlet`` unable to write files above ``size`` bytes; its last line of complaint.

    Nor modules as bytecode, which it would leave cut off.
    """
    command = [sys.executable, "-B", "-c", LIMITED, str(size), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("size", [500, 3_000, 9_000])
def test_prepare_keeps_the_old_data_set(small_data: Path, tmp_path: Path, size: int) -> None:
    old = tmp_path / "data"
    limited_out = limited(size, "synthesize", "--out", old, "--rows", 3_000)
    assert "data: cannot be written" in limited_out
    assert list(tmp_path.iterdir()) == []
    old.symlink_to(small_data)
    before = PreparedDataset(old).schema
    assert "cannot be written" in limited(
        size, "synthesize", "--out", old, "--rows", 3_000, "--overwrite"
    )
    assert PreparedDataset(old).schema == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_training_can_be_resumed(small_data: Path, tmp_path: Path, size: int) -> None:
    config = RunConfig(
        data=small_data,
        model=DLRMConfig(dim=4, inner_dim=12),
        training=TrainingConfig(epochs=1, batch_size=64, threads=1),
    )
    train(config, tmp_path / "whole")
    run = tmp_path / "run"
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    error = limited(size, "train", "--config", tmp_path / "c.yaml", "--out", run)
    assert "cannot be written" in error
    assert "run/" in error
    assert list(run.rglob("*.tmp")) == []
    resume(run)
    files = [RunDirectory(path).model_file for path in (run, tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_failed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    write_text(path, "old")

    class Broken(Exception):
        """What some library's writer raises."""

    def write() -> None:
        with atomic_path(path, failures=(Broken,)) as temporary:
            temporary.write_text("half")
            raise Broken("no luck")

    with pytest.raises(RunError, match=r"f\.txt: cannot be written \(no luck\)"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("size", [20_000, 200_000, 400_000])
def test_a_study_goes_on_when_there_is_room(small_data: Path, tmp_path: Path, size: int) -> None:
    """At first there is no room for the database, then for the checkpoints of wide tables."""
    study = {
        "datasets": {"clicks": {"prepared": str(small_data)}},
        "models": {"dlrm": {"bottom_mlp": [8], "top_mlp": [8]}},
        "optimizers": ["adagrad"],
        "dims": [2, 256],
        "seeds": 1,
        "tuning": {"trials": 2},
        "training": {"epochs": 1, "batch_size": 256},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    arguments = ("sweep", tmp_path / "study.yaml", "--out", tmp_path / "out", "--jobs", 1)
    complaint = limited(size, *arguments)
    assert re.search("cannot be (written|used|opened)", complaint)
    config = StudyConfig.parse(study, "study")
    result = sweep(config, tmp_path / "out")
    assert result.failures == ()
    assert [arm.tuning.failed for arm in result.panels[0].arms] == [(), ()]
