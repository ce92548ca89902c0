"""Names for outside code: by decorator, by entry point, and as package.module:Class."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlet.data import DatasetSchema, PreparedDataset, prepare
from mlet.data.readers.registry import open_raw
from mlet.errors import ConfigError, DataError
from mlet.models import MODELS, CTRModel, ModelConfig, build_model
from mlet.models.fm import FMConfig
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
    for name in (":Thing", "collections:", "collections:Ordered Dict"):
        with pytest.raises(UnknownName, match=f"no tool '{name}'; .*any class as package.module:C"):
            tools[name]
    for name in ("collections:Nothing", "no_such_module:Thing", ".x:Thing"):
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


def reader(*parts: str) -> str:
    """The text of a module with a reader whose frames have these columns."""
    return (
        "import polars as pl\n"
        "from mlet.data.source import RawColumns\n"
        "class Reader:\n"
        "    description, default_split = 'mine', 'random'\n"
        "    columns = RawColumns(dense={'x': 'none'}, categorical=('u',))\n"
        "    def __init__(self, files): pass\n"
        "    def frames(self):\n"
        "        label = pl.Series([0, 1] * 200, dtype=pl.UInt8)\n"
        "        x, u = pl.Series([1.0] * 400), pl.Series(['a'] * 400)\n"
        f"        yield pl.DataFrame({{{', '.join(parts)}}})\n"
        "class NoFrames:\n"
        "    def __init__(self, files): pass\n"
        "class NoFiles:\n"
        "    pass\n"
    )


LABEL, DENSE, FIELD = "'label': label", "'dense:x': x", "'field:u': u"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([LABEL, DENSE], "the reader does not give the column 'field:u' of type String"),
        ([LABEL, DENSE, "'field:u': x"], "gives as Float64 the column 'field:u' of type String"),
        (["'label': x", DENSE, FIELD], "gives as Float64 the column 'label' of type UInt8"),
        (["'label': label * 7", DENSE, FIELD], "gives other values of 'label' than 0 to 1"),
    ],
)
def test_what_a_reader_gives_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[str], message: str
) -> None:
    name = f"made_up_reader_{abs(hash(message))}"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}.py").write_text(reader(LABEL, DENSE, FIELD))
    prepare(open_raw(f"{name}:Reader", [tmp_path]), tmp_path / "good")
    for kind, problem in (("NoFrames", "which is not what"), ("NoFiles", "cannot be called with")):
        with pytest.raises(ConfigError, match=problem):
            open_raw(f"{name}:{kind}", [tmp_path])
    (tmp_path / f"{name}_bad.py").write_text(reader(*parts))
    with pytest.raises(DataError, match=f"mine: .*{message}"):
        prepare(open_raw(f"{name}_bad:Reader", [tmp_path]), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_model_without_forward_is_named(small_data: Path) -> None:
    @MODELS.register("unfinished")
    class Unfinished(CTRModel):
        def __init__(self, config: FMConfig, schema: DatasetSchema) -> None:
            raise AssertionError

    try:
        with pytest.raises(ConfigError, match="model 'unfinished' has no forward"):
            build_model(
                FMConfig(name="fm").model_copy(update={"name": "unfinished"}),
                PreparedDataset(small_data).schema,
            )
    finally:
        del MODELS._own["unfinished"]
