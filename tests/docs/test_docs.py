"""Every command and snippet of the documentation runs."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml

from mlet.data import PreparedDataset
from mlet.data.readers.avazu import CATEGORICAL as AVAZU
from mlet.data.readers.table import TableSchema
from mlet.data.synthetic import SyntheticConfig
from mlet.export import serving_module
from mlet.models import ModelConfig, build_model
from mlet.settings import load_yaml
from mlet.studies import StudyConfig
from mlet.studies.study import TuningConfig
from mlet.training import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What is done in the documentation with a Criteo-sized file is tested with a small one.
SMALLER = {
    "--rows 1000000 10000000 50000000": "--rows 5000",
    "--grid --rounds 8": "",
    " --device cuda": "",  # the test of what runs on a GPU is tests/training/test_cuda.py
    "benchmarks/embedding.py": "benchmarks/embedding.py --rounds 2 --cap 1000 --batch 64",
    "benchmarks/training.py": "benchmarks/training.py --rounds 2 --cap 1000 --batch 64",
    "benchmarks/engine_choices.py": "benchmarks/engine_choices.py --rounds 2",
    "benchmarks/serving.py": "benchmarks/serving.py --cap 50 --rounds 3",
    "benchmarks/scale.py": "benchmarks/scale.py --processes 1 --steps 1",
    "benchmarks/unknown_rows.py": "benchmarks/unknown_rows.py --seeds 1",
    "benchmarks/rolling.py": "benchmarks/rolling.py --since 1995 --until 2015 --blocks 2 "
    "--months 36 --seeds 1",
    "for day in 2 3;": "for day in 2;",
    "benchmarks/drop_in.py": "benchmarks/drop_in.py --small --rounds 2 --no-memory --cases Zipf",
    "studies/quick.yaml": "studies/quick.yaml --set datasets.synthetic.synthetic.rows=2000",
    "studies/synthetic.yaml": "studies/synthetic.yaml --set datasets.synthetic.synthetic.rows=2000",
    "studies/initialisation.yaml": "studies/initialisation.yaml "
    "--set datasets.synthetic.synthetic.rows=2000",
    "MLET_DATA=../shared/data ": "MLET_DATA=few ",
    "../shared/data/": "few/",
    "sweep studies/real.yaml": "sweep studies/real.yaml --set models=[dlrm] "
    "--set optimizers=[adagrad]",
    "sweep studies/real-small.yaml": "sweep studies/real-small.yaml --set models=[dlrm] "
    "--set optimizers=[adagrad]",
    "sweep studies/ideas.yaml": "sweep studies/ideas.yaml --set models=[dlrm]",
    "sweep studies/synthetic-kinds.yaml": "sweep studies/synthetic-kinds.yaml "
    "--datasets small-fields,fewer-rows",
    "studies/peers.yaml": "studies/peers.yaml --set datasets.synthetic.synthetic.rows=2000",
}
#: Added to every comparison, so that the full-size ones of the results run in seconds.
SMALL = "--seeds 1 --epochs 1 --dims 2 --inner-dims 8 --learning-rates 0.02"
#: And to every search for a small model.
SMALL_SEARCH = "--trials 1 --seeds 1 --epochs 1 --reference-dim 2 --set model.mlp=[8]"
#: And to every study.
SMALL_STUDY = (
    "--set seeds=1 --set tuning.trials=1 --set dims=[4] --set inner_dims=[8] "
    "--set training.epochs=1 --set training.batch_size=1024"
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def desk(
    tmp_path: Path,
    movielens: Path,
    criteo_sample: Path,
    criteo80k: Path,
    debdeps: Path,
    tennis: Path,
) -> Path:
    """A folder with the input files that the documentation speaks of."""
    (tmp_path / "train.txt").symlink_to(criteo_sample)
    (tmp_path / "ml-latest-small").symlink_to(movielens)
    (tmp_path / "days").mkdir()
    for day in range(2):
        (tmp_path / "days" / f"day_{day}.gz").write_bytes(gzip.compress(criteo_sample.read_bytes()))
    for name in ("benchmarks", "examples", "studies"):
        (tmp_path / name).symlink_to(ROOT / name)
    for file, every in ((debdeps, 300), (tennis, 300), (criteo80k, 20)):
        (tmp_path / "few" / file.parent.name).mkdir(parents=True)
        few = pl.scan_parquet(file).gather_every(every).collect()
        few.write_parquet(tmp_path / "few" / file.parent.name / file.name)
    (tmp_path / "few" / "movielens-small").symlink_to(movielens)
    rows = [f"{1 if i % 3 else -1} {i % 7}:1 {10 + i % 5}:1 {20 + i % 2}:1" for i in range(400)]
    for name in ("frappe.libfm", "frappe.validation.libfm", "frappe.test.libfm"):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    lines = [
        ",".join([str(i), str(i % 2), f"1410{21 + i // 24:02d}{i % 24:02d}", *AVAZU])
        for i in range(96)
    ]
    header = ",".join(["id", "click", "hour", *AVAZU])
    (tmp_path / "avazu.csv.gz").write_bytes(gzip.compress("\n".join([header, *lines]).encode()))
    parts = ["train", "valid", "test"]
    clicks = [
        f"{i % 2},1.5,{i % 60},u{i % 9},i{i % 5},a|b,{i},{parts[i // 10 % 3]},d{i % 2}"
        for i in range(200)
    ]
    text = "\n".join(["click,price,age,user,item,tags,timestamp,part,device", *clicks]) + "\n"
    (tmp_path / "clicks.csv").write_text(text)
    schema = next(text for kind, text in blocks(ROOT / "docs" / "data.md") if kind == "yaml")
    (tmp_path / "clicks.yaml").write_text(schema)
    unsplit = [line for line in schema.splitlines() if "split:" not in line]
    (tmp_path / "split-already.yaml").write_text("\n".join(unsplit))
    return tmp_path


def in_small(script: str) -> str:
    """The script with its comparisons cut down and without calls of make."""
    joined = script.replace("\\\n", " ")
    lines = []
    for line in joined.splitlines():
        if line.startswith("make "):
            continue
        command = line.split("  #", 1)[0]
        for large, small in SMALLER.items():
            command = command.replace(large, small)
        if command.startswith("mlet compare"):
            # the last value of a repeated option counts; one step size excludes a list of them
            command = re.sub(r"--learning-rate \S+", "", command) + " " + SMALL
        if command.startswith("mlet shrink"):
            command += " " + SMALL_SEARCH
        if re.match(r"(MLET_DATA=\S+ )?mlet sweep", command):
            command += " " + SMALL_STUDY
        lines.append(command)
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_snippets_run(page: Path, desk: Path, warm: Path) -> None:
    path = f"{warm}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    for place, (kind, text) in enumerate(blocks(page)):
        if kind == "bash":
            command = ["bash", "-euo", "pipefail", "-c", in_small(text)]
        elif kind == "python":
            script = desk / f"snippet_{place}.py"
            script.write_text(text)
            command = [str(warm / "python"), str(script)]
        else:
            continue
        result = subprocess.run(
            command, cwd=desk, env=environment, capture_output=True, text=True, timeout=280
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"


def test_yaml_examples_are_valid_and_complete(desk: Path) -> None:
    assert TableSchema.load(desk / "clicks.yaml").names()
    text = next(text for kind, text in blocks(ROOT / "docs" / "training.md") if kind == "yaml")
    (desk / "run.yaml").write_text(text)
    config = RunConfig.load(desk / "run.yaml")
    assert config.model_dump(mode="json") == load_yaml(desk / "run.yaml"), "no key is left out"


def test_the_study_example_is_valid_and_complete() -> None:
    text = next(text for kind, text in blocks(ROOT / "docs" / "studies.md") if kind == "yaml")
    values = yaml.safe_load(text)
    config = StudyConfig.parse(values, "docs/studies.md")
    assert set(values) == set(StudyConfig.model_fields), "no key is left out"
    assert set(values["tuning"]) == set(TuningConfig.model_fields)
    assert len(config.arms()) == 2 * 2 * 1 * 3 * 5


def test_the_servers_configuration_is_that_of_the_graph(small_data: Path) -> None:
    page = dict(reversed(blocks(ROOT / "docs" / "serving.md")))
    assert yaml.safe_load(page["yaml"])["kind"] == "InferenceService"
    (text,) = [text for _, text in blocks(ROOT / "docs" / "serving.md") if "config.pbtxt" in text]
    given = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ (\d+) \]', text)
    page_data = SyntheticConfig()
    schema = PreparedDataset(small_data).schema
    module = serving_module(build_model(ModelConfig.parse({}, "dlrm"), schema), schema)
    dense, ids = module.random_inputs(2)
    assert (dense.dtype, ids.dtype) == (torch.float32, torch.int64)
    assert given == [
        (module.inputs[0], "FP32", str(page_data.dense)),
        (module.inputs[1], "INT64", str(len(page_data.cardinalities))),
        (module.output, "FP32", "1"),
    ]


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {kind for page in PAGES for kind, _ in blocks(page)}
    assert kinds <= {"bash", "python", "yaml", "layers", ""}  # layers: tests/test_architecture.py


def test_links_and_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def dry_run(target: str) -> str:
    command = ["make", "--dry-run", "--always-make", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_gate_runs_the_readmes_test_command() -> None:
    script = next(text for kind, text in blocks(ROOT / "README.md") if kind == "bash")
    assert script.split("\n")[:2] == ["make demo", "make test"]
    gate = (ROOT / ".ci" / "run").read_text()
    assert re.search(r'^make PYTHON="\$PYTHON" test$', gate, re.MULTILINE)
    recipe = next(line for line in dry_run("test").splitlines() if "bin/pytest" in line)
    words = recipe.split()
    assert not {"-m", "-k", "--deselect", "--ignore"} & set(words), "the whole suite"


@pytest.mark.slow
def test_make_demo(tmp_path: Path) -> None:
    """The README's first command, in the environment that runs this test."""
    environment = Path(sys.executable).parents[1]
    result = subprocess.run(
        ["make", "demo", f"DEMO={tmp_path / 'demo'}", f"VENV={environment}",
         f"INSTALLED={environment / 'pyvenv.cfg'}", "--assume-old=pyproject.toml",
         "--assume-old=constraints.txt"],
        cwd=ROOT, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SLT and MLET" in result.stdout
    assert "beat SLT of the same dimension" in result.stdout, "three seeds tell something apart"
    assert f"report: {tmp_path / 'demo' / 'comparison' / 'report.html'}" in result.stdout
    assert (tmp_path / "demo" / "comparison" / "report.html").exists()
