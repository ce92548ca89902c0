"""Names for outside code: by decorator, by entry point, and as package.module:Class."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlet.data import PreparedDataset
from mlet.errors import ConfigError
from mlet.models import MODELS, ModelConfig
from mlet.nn.compression import COMPRESSIONS, Compression, Hashing
from mlet.registry import Registry, UnknownName
from mlet.studies.datasets import DatasetConfig
from mlet.training import RunConfig, RunDirectory, train

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]  # noqa: F821

PACKAGE = '''
from typing import Literal

import polars as pl
from torch import Tensor

from mlet.data import Batch, DatasetSchema
from mlet.data.source import LABEL, RawColumns, field_column
from mlet.models import CTRModel, ModelConfig
from mlet.models.base import embed_fields
from mlet.nn.compression import Compression, Hashing


class MeanConfig(ModelConfig):
    """One setting of its own."""

    scale: float = 1.0


class Mean(CTRModel):
    """The mean of all embeddings."""

    def __init__(self, config: MeanConfig, schema: DatasetSchema) -> None:
        super().__init__()
        self.scale = config.scale
        self.embedding = embed_fields(config, schema)

    def forward(self, batch: Batch) -> Tensor:
        return self.scale * self.embedding(batch.ids, batch.bags).mean(dim=(1, 2))


class Halved(Compression):
    """Half as many rows."""

    def build(self, sizes, dim, inner_dim, **options):
        return Hashing(collisions=2).build(sizes, dim, inner_dim, **options)


class Alternating:
    """A line is a user; every other one clicks."""

    default_split = "random"

    def __init__(self, paths):
        self.paths = list(paths)
        self.columns = RawColumns(dense={}, categorical=("user",))
        self.description = "alternating"

    def frames(self):
        for path in self.paths:
            users = path.read_text().split()
            clicks = pl.Series([i % 2 for i in range(len(users))], dtype=pl.UInt8)
            yield pl.DataFrame({LABEL: clicks, field_column("user"): users})


class Unannotated(CTRModel):
    def __init__(self, config, schema):
        super().__init__()

    def forward(self, batch: Batch) -> Tensor:
        return batch.dense.sum(dim=1)
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package ``outside`` with entry points."""
    root = tmp_path / "site"
    (root / "outside-1.0.dist-info").mkdir(parents=True)
    (root / "outside.py").write_text(PACKAGE)
    (root / "outside-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n"
    )
    (root / "outside-1.0.dist-info" / "entry_points.txt").write_text(
        "[mlet.models]\nmean = outside:Mean\nbroken = outside:Nothing\n"
        "[mlet.compression]\nhalved = outside:Halved\n[mlet.readers]\nlines = outside:Alternating\n"
    )
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("PYTHONPATH", str(root), prepend=os.pathsep)
    yield root
    sys.modules.pop("outside", None)


def test_names_are_given_once_and_unknown_ones_list_what_there_is() -> None:
    tools: Registry[type] = Registry("tool", "mlet.test")

    @tools.register("saw")
    class Saw:
        """A tool."""

    assert tools["saw"] is Saw
    assert list(tools) == ["saw"]
    with pytest.raises(ValueError, match="there is a tool 'saw' already"):
        tools.register("saw")(int)
    with pytest.raises(UnknownName, match=r"no tool 'sow'; did you mean 'saw'\? there are: saw"):
        tools["sow"]
    assert "saw" in tools
    assert "sow" not in tools
    assert tools.get("sow") is None
    assert tools["collections:OrderedDict"].__name__ == "OrderedDict"
    for name in ("collections:Nothing", "no_such_module:Thing", ":Thing", ".x:Thing"):
        with pytest.raises(ConfigError, match=f"tool '{name}' cannot be imported"):
            tools[name]


@pytest.mark.parametrize("name", ["mean", "outside:Mean"])
def test_a_model_of_another_package(outside: Path, small_data: Path, tmp_path: Path, name: str):
    values = {
        "data": str(small_data),
        "model": {"name": name, "dim": 2, "scale": 3.0, "compression": {"name": "halved"}},
        "training": {"epochs": 1, "batch_size": 512, "threads": 1},
    }
    config = RunConfig.parse(values, "test")
    train(config, tmp_path / "run")
    assert RunDirectory(tmp_path / "run").config() == config
    again = RunConfig.load(tmp_path / "run" / "config.yaml")
    assert again.model.model_dump()["scale"] == 3.0
    assert type(again.model.compression).__name__ == "Halved"
    with pytest.raises(ConfigError, match=r"unknown key 'model\.scala'; did you mean 'scale'"):
        RunConfig.parse({**values, "model": {"name": name, "scala": 1}}, "test")


def test_through_the_command_line(outside: Path, mlet: Mlet, small_data: Path) -> None:
    assert "mean" in mlet("train", "--help").stdout
    mlet("train", small_data, "--out", "run", "--model", "mean", "--dim", 2, "--epochs", 1)
    mlet("collapse", "run", "--out", "m.safetensors")
    mlet("evaluate", "m.safetensors", "--data", small_data)
    words = ("compare", small_data, "--out", "cmp", "--model", "outside:Mean", "--dims", 2)
    mlet(*words, "--inner-dims", 4, "--seeds", 1, "--epochs", 1, "--lr", 0.02, "--jobs", 1)
    words = ("train", small_data, "--out", "other", "--model")
    assert "cannot be imported" in mlet(*words, "broken", code=2).stderr
    assert "must take (config, schema)" in mlet(*words, "outside:Unannotated", code=2).stderr
    error = mlet(*words, "maen", code=2).stderr
    assert "'model.name': no model 'maen'; did you mean 'mean'? there are: " in error


@pytest.mark.parametrize("name", ["lines", "outside:Alternating"])
def test_a_reader_of_another_package(outside: Path, mlet: Mlet, tmp_path: Path, name: str) -> None:
    (tmp_path / "users.txt").write_text(" ".join(f"u{i % 7}" for i in range(200)))
    mlet("prepare", name, "users.txt", "--out", "data", "--min-count", "user=2")
    data = PreparedDataset(tmp_path / "data")
    assert data.schema.source == "alternating"
    assert sorted(data.vocabulary("user")["category"][1:]) == [f"u{i}" for i in range(7)]
    assert "lines" in mlet("prepare", "--help").stdout
    assert "--min-count" in mlet("prepare", name, "--help").stdout
    config = DatasetConfig.parse({"format": name, "files": ["users.txt"]}, "x")
    assert config.format == name
    assert mlet("prepare", "lins", "users.txt", "--out", "d", code=2)
    with pytest.raises(ConfigError, match="no reader 'lins'; did you mean 'lines'"):
        DatasetConfig.parse({"format": "lins", "files": ["users.txt"]}, "x")


def test_what_mlet_brings_along() -> None:
    assert {"dlrm", "deepfm", "gdcn"} <= set(MODELS)
    assert set(COMPRESSIONS) >= {"hashing", "low_rank", "tensor_train", "deep_hash"}
    assert Compression.parse({"name": "hashing"}, "x") == Hashing()
    for name, model in MODELS.items():
        assert model.config_type()().name == name
    for registry, name in ((MODELS, "collections:OrderedDict"), (COMPRESSIONS, "json:loads")):
        with pytest.raises(ConfigError, match=f"{name}' is no (model|compression)"):
            registry[name]
    with pytest.raises(ConfigError, match="no compression 'hashin'; did you mean 'hashing'"):
        ModelConfig.parse({"compression": {"name": "hashin"}}, "x")
