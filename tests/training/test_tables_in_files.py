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

ROWS, TAGS, WIDTH = 3_000, 140_000, 256

LIMITED = """
import gc, json, resource, sys
from pathlib import Path
import yaml
from mlet.errors import RunError
from mlet.training import RunConfig, resume, train
from mlet.training.collapse import collapse_run
from mlet.training.evaluate import evaluate
from mlet.training.load import load_for_evaluation

def all_of_it(config, out, collapsed):
    train(config, out)
    gc.collect()  # by and by a process has to give back what it had; commands are one each
    resume(out, epochs=2)
    gc.collect()
    done = collapse_run(out, collapsed)
    assert done.largest_difference < 1e-6, done
    return evaluate(*load_for_evaluation(out, None))[0].scores

folder, allowed, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
configs = {
    name: RunConfig.parse(yaml.safe_load((folder / f"{name}.yaml").read_text()), name)
    for name in names
}
for name in names:  # libraries are loaded, kernels compiled
    small = json.loads(configs[name].model_dump_json())
    small["model"].update(dim=4, inner_dim=8)
    all_of_it(RunConfig.parse(small, name), folder / f"warm-{name}", folder / f"w-{name}.safetensors")
used = next(
    int(line.split()[1]) * 1024
    for line in Path("/proc/self/status").read_text().splitlines()
    if line.startswith("VmData")
)
resource.setrlimit(resource.RLIMIT_DATA, (used + allowed,) * 2)
try:
    train(
        configs[names[0]].model_copy(
            update={"training": configs[names[0]].training.model_copy(update={"tables_in": "memory"})}
        ),
        folder / "memory",
    )
except RunError as error:
    print(error)
for name in names:
    print(json.dumps(all_of_it(configs[name], folder / f"run-{name}", folder / f"{name}.safetensors")))
"""


def settings(data: Path, tables_in: str, **model: object) -> dict[str, Any]:
    return {
        "data": str(data),
        "model": {"name": "dlrm", "bottom_mlp": [8], "top_mlp": [8], **model},
        "training": {
            "epochs": 1, "batch_size": 256, "threads": 1, "patience": None, "tables_in": tables_in,
            "validate_every": 1_000, "checkpoint_every": 5, "keep_state": True,
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
        "label": "click", "dense": ["price"], "categorical": ["user"], "multi_valued": {"tags": "|"},
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
        resume(tmp_path / "memory", epochs=2)
        run, other = tmp_path / f"run-{name}", tmp_path / "memory"
        assert numbers(run) == numbers(other)
        model_files = [(path / "model.safetensors").read_bytes() for path in (run, other)]
        assert model_files[0] == model_files[1]
        assert (tmp_path / f"{name}.safetensors").read_bytes() == model_files[0]
        assert evaluate(*load_for_evaluation(other, None))[0].scores == json.loads(found)
        shutil.rmtree(run)
        shutil.rmtree(other)
