"""Tables in a mapped file: larger than the memory that there is, and the same numbers to the bit.

The limit is one on a process' data segment (``RLIMIT_DATA``), which on Linux counts all private
memory that may be written to: what allocators hand out, and files that are mapped as copies. A
file that is mapped as what it is, shared, does not count: the system writes its pages to the disk
when it wants their room. So a process that keeps to the limit has, at no time, had a table in its
memory, whatever the machine has. What libraries have when nothing is loaded yet is allowed beside.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import save_file

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import TableSchema, TableSource
from mlet.errors import ConfigError, WriteError
from mlet.export.safetensors_file import read_tensors, write_tensors
from mlet.table_files import TableFiles
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.evaluate import evaluate
from mlet.training.load import load_for_evaluation
from mlet.training.observer import SilentObserver

ROWS, TAGS, WIDTH = 3_000, 140_000, 224

LIMITED = """
import gc, json, resource, sys
from pathlib import Path
import yaml
from mlet.errors import RunError
from mlet.training import RunConfig, resume, train
from mlet.training.collapse import collapse_run
from mlet.training.evaluate import evaluate
from mlet.training.load import load_for_evaluation

def all_of_it(config, out):
    train(config, out)
    gc.collect()  # of commands that are processes of their own, nothing would be left
    if config.model.inner_dim is not None:
        resume(out, epochs=2)
        gc.collect()
        done = collapse_run(out, out / "again.safetensors")
        assert done.largest_difference < 1e-6, done
        gc.collect()
    return evaluate(*load_for_evaluation(out, None))[0].scores

folder, allowed, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
configs = {
    name: RunConfig.parse(yaml.safe_load((folder / f"{name}.yaml").read_text()), name)
    for name in names
}
for name in names:  # libraries are loaded, kernels compiled
    small = json.loads(configs[name].model_dump_json())
    small["model"].update(dim=4, inner_dim=small["model"]["inner_dim"] and 8)
    all_of_it(RunConfig.parse(small, name), folder / f"warm-{name}")
used = next(
    int(line.split()[1]) * 1024
    for line in Path("/proc/self/status").read_text().splitlines()
    if line.startswith("VmData")
)
resource.setrlimit(resource.RLIMIT_DATA, (used + allowed,) * 2)
try:
    tree = json.loads(configs[names[0]].model_dump_json())
    tree["training"]["tables_in"] = "memory"
    train(RunConfig.parse(tree, "memory"), folder / "none")
except RunError as error:
    print(error)
for name in names:
    print(json.dumps(all_of_it(configs[name], folder / f"run-{name}")))
"""


def settings(data: Path, tables_in: str, **model: object) -> dict[str, Any]:
    return {
        "data": str(data),
        "model": {"name": "dlrm", "bottom_mlp": [8], "top_mlp": [8], **model},
        "training": {
            "epochs": 1, "batch_size": 256, "threads": 1, "patience": None, "tables_in": tables_in,
            "validate_every": 1_000, "keep_state": True,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows with a field of many categories, and a small one."""
    folder, draw = tmp_path_factory.mktemp("tagged"), np.random.default_rng(0)
    bags = draw.permutation(TAGS).reshape(ROWS - 200, -1)
    again = draw.integers(0, TAGS, (200, bags.shape[1]))
    rows = pl.DataFrame(
        {
            "click": draw.integers(0, 2, ROWS),
            "user": [f"u{u}" for u in draw.integers(0, 20, ROWS)],
            "tags": ["|".join(map(str, bag)) for bag in [*bags, *again]],
            "price": draw.random(ROWS),
        }
    )
    rows.write_csv(folder / "rows.csv")
    schema = {
        "label": "click", "dense": ["price"], "categorical": ["user"],
        "multi_valued": {"tags": "|"},
    }  # fmt: skip
    source = TableSource([folder / "rows.csv"], TableSchema.parse(schema, "schema"))
    split = SplitRule(by="order", valid=0.1, test=0.05)
    prepare(source, folder / "data", split=split)
    return folder / "data"


def numbers(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_tables_of_four_times_the_memory_train_to_the_same_numbers(
    tagged: Path, tmp_path: Path
) -> None:
    """To the bit: two-layer tables, and ordinary ones whose collapsed tables are as large."""
    models = {"two": {"dim": 8, "inner_dim": WIDTH}, "one": {"dim": WIDTH, "inner_dim": None}}
    for name, model in models.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings(tagged, "file", **model)))
    categories = PreparedDataset(tagged).schema.num_categories
    tables = categories * WIDTH * 4 * 2  # with Adagrad's sums
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(tables // 4), *models],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused, *scores = done.stdout.strip().splitlines()
    assert "memory is too small" in refused
    assert "tables that are larger can lie in a file: --set training.tables_in=file" in refused
    for (name, model), found in zip(models.items(), scores, strict=True):
        config = RunConfig.parse(settings(tagged, "memory", **model), name)
        train(config, tmp_path / "memory")
        if name == "two":
            resume(tmp_path / "memory", epochs=2)
        run, other = tmp_path / f"run-{name}", tmp_path / "memory"
        assert numbers(run) == numbers(other)
        model_files = [(path / "model.safetensors").read_bytes() for path in (run, other)]
        assert model_files[0] == model_files[1]
        if name == "two":
            assert (run / "again.safetensors").read_bytes() == model_files[0]
        assert evaluate(*load_for_evaluation(other, None))[0].scores == json.loads(found)
        shutil.rmtree(run)
        shutil.rmtree(other)


class Interrupted(SilentObserver):
    """Presses Ctrl-C in the sixth step."""

    def step(self, loss: float, rows: int) -> None:
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("optimizer", "more"),
    [
        ("adam", {"table_dtype": "bfloat16", "table_bias": True}),
        ("rowwise_adagrad", {"init": "co_occurrence"}),
        ("sgd", {"inner_dim": None, "table_bias": True}),
    ],
)
def test_a_run_goes_on_wherever_its_tables_were(
    small_data: Path, tmp_path: Path, optimizer: str, more: dict[str, Any]
) -> None:
    """Begun in memory, gone on with in a file, and the other way round."""
    for first in ("memory", "file"):
        values = settings(small_data, first, **{"name": "deepfm", "dim": 4, "inner_dim": 8, **more})
        del values["model"]["bottom_mlp"], values["model"]["top_mlp"]
        values["optimizer"] = {"tables": {"name": optimizer}}
        run = tmp_path / first
        with pytest.raises(KeyboardInterrupt):
            train(RunConfig.parse(values, "test"), run, Interrupted())
        second = {"memory": "file", "file": "memory"}[first]
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace(f"in: {first}", f"in: {second}"))
        resume(run)
        assert RunDirectory(run).config().training.tables_in == second
    assert numbers(tmp_path / "memory") == numbers(tmp_path / "file")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "file")]
    assert files[0] == files[1]


def test_a_file_of_tables_has_no_name_and_has_its_room(tmp_path: Path) -> None:
    files = TableFiles(tmp_path / "not" / "there" / "yet")
    before = os.statvfs(tmp_path).f_bfree
    table = files.zeros((1_000, 5_000), torch.float32)
    assert list(tmp_path.iterdir()) == []
    assert (before - os.statvfs(tmp_path).f_bfree) * os.statvfs(tmp_path).f_frsize > 10_000_000
    assert not table.any()
    table[7] = 3.0
    assert table.sum() == 15_000.0
    maps = Path("/proc/self/maps").read_text().splitlines()
    mine = [line.split() for line in maps if str(tmp_path) in line]
    assert [(words[1], words[-1]) for words in mine] == [("rw-s", "(deleted)")]
    assert files.zeros((0, 4), torch.bfloat16).shape == (0, 4)
    with pytest.raises(WriteError, match=r"no file for a table of [\d,]+ bytes .*make room there"):
        files.zeros((1 << 40, 1 << 10), torch.float32)


def test_a_killed_run_leaves_nothing_and_goes_on(
    mlet_command: Path, small_data: Path, tmp_path: Path
) -> None:
    values = settings(small_data, "file", dim=4, inner_dim=8)
    values["training"].update(batch_size=8, checkpoint_every=3)
    config = RunConfig.parse(values, "test")
    train(config, tmp_path / "whole")
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    run = tmp_path / "run"
    process = subprocess.Popen(
        [mlet_command, "train", "--config", "c.yaml", "--out", run], cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "last.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not RunDirectory(run).finished
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml", "run", "whole"}
    resume(run)
    assert numbers(run) == numbers(tmp_path / "whole")
    left = {path.relative_to(run) for path in run.rglob("*")}
    assert left == {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": {"compression": {"name": "low_rank", "rank": 2}}}, "not for model.compression"),
        ({"grow": {"run": "old"}}, "not for grow"),
        ({"training": {"device": "meta"}}, "tables in a file are trained on the CPU"),
    ],
)
def test_what_does_not_go_together_is_refused(
    small_data: Path, tmp_path: Path, changed: dict[str, dict[str, Any]], reason: str
) -> None:
    values = settings(small_data, "file")
    for name, more in changed.items():
        values[name] = {**values.get(name, {}), **more}
    with pytest.raises(ConfigError, match=reason):
        train(RunConfig.parse(values, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_of_tensors_are_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5), "a": torch.randn(70, 70_000), "ä\"\n": torch.randn(2, 2).double(),
        "codes": torch.arange(7, dtype=torch.uint8), "empty": torch.empty(0, 4),
        "half": torch.randn(3).half(), "bf": torch.randn(3, 1).bfloat16(), "z": torch.tensor(5),
        "bool": torch.tensor([True, False]),
    }  # fmt: skip
    texts = {"mlet": '{"a": "ä"}'}
    write_tensors(tensors, tmp_path / "mine", texts)
    save_file(tensors, tmp_path / "theirs", metadata=texts)
    assert (tmp_path / "mine").read_bytes() == (tmp_path / "theirs").read_bytes()
    found, metadata = read_tensors(tmp_path / "mine")
    assert metadata == texts
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
