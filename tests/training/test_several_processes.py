"""Several processes train to the numbers of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from mlet import metrics
from mlet.data import Batch
from mlet.metrics import Floats
from mlet.nn import Bags, Field, FieldEmbedding
from mlet.optim import FusedSGD
from mlet.task import Binary
from mlet.training import RunDirectory, resume, train
from mlet.training.followed_run import FollowedRun
from mlet.training.joined_scores import scored
from mlet.training.loop import _Trainer
from mlet.training.processes import Processes

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]

#: The last batch of 1 770 rows is one row: all processes but one have none of it.
SETTINGS = ("--batch-size", "61", "--epochs", "1", "--set", "training.threads=1")


def in_parts(size: int) -> Callable[[_Trainer, Batch], float]:
    """A step of one process that adds up the parts that several would have."""

    def step(self: _Trainer, batch: Batch) -> float:
        rows, value = len(batch.dense), 0.0
        self.optimizers.zero_grad()
        for rank in range(size):
            own = batch.rows(slice(rows * rank // size, rows * (rank + 1) // size))
            if len(own.dense):
                loss = self.task.batch_loss(self.model(own), own.labels["label"], own.weights)
                loss = loss * (len(own.dense) / rows)
                loss.backward()
                value += loss.item()
        self.optimizers.step()
        return value

    return step


def numbers(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_two_processes_train_as_one_that_adds_halves(
    mlet: Mlet, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights to the bit: a sum of two has no order."""
    mlet("train", small_data, "--out", "two", "--processes", "2", *SETTINGS)
    monkeypatch.setattr(_Trainer, "_step", in_parts(2))
    config = RunDirectory(tmp_path / "two").config()
    train(config, tmp_path / "one")
    for two, one in zip(numbers(tmp_path / "two"), numbers(tmp_path / "one"), strict=True):
        assert two == pytest.approx(one, rel=1e-8)  # rows are scored in other batches
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert models[0] == models[1]


def test_more_processes_go_on_with_the_run_of_one(
    mlet: Mlet, small_data: Path, tmp_path: Path
) -> None:
    """Of a model without kinks, in which rounding does not grow."""
    words = ("--model", "fm", *SETTINGS)
    mlet("train", small_data, "--out", "run", *words, "--set", "training.keep_state=true")
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    mlet("train", "--resume", "run", "--epochs", "2", "--processes", "3")
    resume(tmp_path / "alone", epochs=2)
    for several, one in zip(numbers(tmp_path / "run"), numbers(tmp_path / "alone"), strict=True):
        assert several == pytest.approx(one, rel=2e-5)


def test_parts_of_a_batch_make_up_the_batch() -> None:
    ids = torch.arange(10, dtype=torch.int32).view(5, 2)
    bags = {"tags": Bags(torch.arange(7, dtype=torch.int32), torch.tensor([0, 2, 2, 5, 6, 7]))}
    dense, weights = torch.rand(5, 3), torch.rand(5)
    batch = Batch({"label": torch.rand(5)}, dense, ids, bags, weights)
    parts = [batch.rows(slice(low, high)) for low, high in ((0, 2), (2, 2), (2, 5))]
    for name in ("dense", "ids", "weights"):
        whole = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(whole, getattr(batch, name)), name
    assert torch.equal(torch.cat([part.labels["label"] for part in parts]), batch.labels["label"])
    assert torch.equal(torch.cat([p.bags["tags"].values for p in parts]), bags["tags"].values)
    assert [part.bags["tags"].offsets.tolist() for part in parts] == [[0, 2, 2], [0], [0, 3, 4, 5]]


def some_rows(kind: str) -> tuple[Floats, Floats, Floats]:
    """Labels, probabilities with ties, weights."""
    draw = np.random.default_rng(len(kind))
    rows = {"many": 5_000, "few": 2, "one label": 300}[kind]
    labels = draw.integers(0, 2, rows) * (kind != "one label")
    probabilities = draw.random(rows).round(2 if kind == "many" else 9)
    return labels.astype(np.float64), probabilities, draw.random(rows).astype(np.float32)


class _Counts(Binary):
    """Another task: its numbers are its own affair."""

    def score(self, labels, predictions, weights=None):  # type: ignore[no-untyped-def]
        return {"auc": float(np.asarray(labels) @ np.asarray(predictions)), "logloss": len(labels)}


KINDS = ("many", "few", "one label")


def _score_part(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3
    )
    processes, found = Processes(), []
    for kind in KINDS:
        labels, p, weights = some_rows(kind)
        part = processes.part(len(labels))
        for task, w in ((Binary(), None), (Binary(), weights[part]), (_Counts(), None)):
            found.append(scored(task, labels[part], p[part], w, processes))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def test_scores_of_parts_are_those_of_all_rows(tmp_path: Path) -> None:
    multiprocessing.start_processes(
        _score_part, (str(tmp_path),), nprocs=3, start_method="forkserver"
    )
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert str(found[0]) == str(found[1]) == str(found[2])
    expected = []
    for kind in KINDS:
        labels, p, weights = some_rows(kind)
        expected += [metrics.score(labels, p, w)._asdict() for w in (None, weights)]
        expected.append(_Counts().score(labels, p))
    for one, all_rows in zip(found[0], expected, strict=True):
        assert one == pytest.approx(all_rows, rel=1e-9, nan_ok=True)


def _exchange(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    gather, sent = distributed.all_gather, []

    def counted(out, mine, group=None):  # type: ignore[no-untyped-def]
        sent.append(mine.numel() * mine.element_size())
        return gather(out, mine, group=group)

    distributed.all_gather = counted
    found = {}
    for k in (8, 64):
        layer = FieldEmbedding([Field("a", 500, 4, k)])
        optimizer = FusedSGD(layer, lr=1.0)
        ids = torch.arange(80).repeat(3)[:, None] + 50 * rank
        layer(ids).sum().backward()
        sent.clear()
        Processes().add_gradients(layer)
        (table,) = layer.stacks()
        (gradient,) = table.row_gradients
        optimizer.step()
        optimizer.detach()
        assert table.row_gradients is None
        found[k] = (sum(sent), gradient.rows.tolist(), gradient.sums[:, 0].tolist())
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:an optimizer of tables alone")
def test_what_is_sent_is_d_wide_whatever_k_is(tmp_path: Path) -> None:
    multiprocessing.start_processes(
        _exchange, (str(tmp_path),), nprocs=2, start_method="forkserver"
    )
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for sent, rows, sums in found.values():
            assert sent == 80 * 8 + 80 * 4 * 4, "80 distinct rows: their numbers, 4 floats of each"
            assert rows == list(range(130))
            assert sums == [3.0] * 50 + [6.0] * 30 + [3.0] * 50


def test_who_follows_writes_nothing() -> None:
    at_the_end = {"write_summary"}  # which the first process alone comes to
    writes = {n for n in vars(RunDirectory) if n.startswith(("write_", "save_", "create"))}
    assert writes - at_the_end == {n for n in vars(FollowedRun) if not n.startswith("__")}


@pytest.fixture
def endless(
    mlet_command: Path, small_data: Path, tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """Two processes at work, past their first checkpoint; their tables are sharded."""
    words = [
        "train", small_data, "--out", "run", "--processes", "2", *SETTINGS, "--epochs", "2000",
        "--set", "training.patience=null", "--set", "training.checkpoint_every=5",
        "--set", "training.shard_tables_above=0",
    ]  # fmt: skip
    process = subprocess.Popen(
        [mlet_command, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def workers(process: subprocess.Popen[str]) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    mine = [int(word) for word in text.split()]
    return [pid for pid in mine if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others(
    endless: subprocess.Popen[str], mlet: Mlet, rank: int
) -> None:
    pids = workers(endless)
    assert len(pids) == 2
    os.kill(pids[rank], signal.SIGKILL)
    _, errors = endless.communicate(timeout=60)
    assert endless.returncode == 2
    assert "was killed by signal 9" in errors
    assert "go on with mlet train --resume" in errors
    assert "Traceback" not in errors
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
    mlet("train", "--resume", "run", "--epochs", "1")


@pytest.mark.slow
def test_ctrl_c_stops_all_at_the_same_step(endless: subprocess.Popen[str], mlet: Mlet) -> None:
    endless.send_signal(signal.SIGINT)
    _, errors = endless.communicate(timeout=60)
    assert endless.returncode == 130
    assert "continue with: mlet train --resume run" in errors
    mlet("train", "--resume", "run", "--epochs", "1")


def test_what_cannot_be_is_said_once(mlet: Mlet, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").touch()
    done = mlet("train", small_data, "--out", "full", "--processes", "2", *SETTINGS, code=2)
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert lines == ["error: full exists and is no run; choose another directory"]
