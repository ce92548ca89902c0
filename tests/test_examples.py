"""The examples with real clients: each trains with the library's own trainer and checks itself."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch

from mlet.data import PreparedDataset
from mlet.export import serving_module, to_onnx
from mlet.models import DLRMConfig, build_model
from mlet.training import RunDirectory, train

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENTS = {
    "deepctr_torch_deepfm.py": "deepctr_torch",
    "fuxictr_deepfm.py": "fuxictr",
    "torchrec_dlrm.py": "torchrec",
    "torchrec_sharded.py": "torchrec",
    "huggingface_bert.py": "transformers",
}
#: What an example is started with, other than by itself.
LAUNCHED = {
    "torchrec_sharded.py": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"),
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(CLIENTS)
    assert [path.name for path in EXAMPLES.glob("*.sh")] == ["train_sharded.sh"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_example(name: str, tmp_path: Path) -> None:
    if find_spec(CLIENTS[name]) is None:
        pytest.skip(f"{CLIENTS[name]} is not installed: make test installs the extra 'clients'")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *LAUNCHED.get(name, ()), EXAMPLES / name],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    scores = re.search(r"between trained and plain scores: (\S+)", result.stdout)
    identity = re.search(r"convert and collapse: (\S+)", result.stdout)
    assert scores is not None
    assert identity is not None
    assert float(scores[1]) <= 1e-6
    assert float(identity[1]) <= 1e-6


@pytest.mark.slow
def test_training_by_several_processes(warm: Path, tmp_path: Path) -> None:
    """Two of them, as tests have no more cores; the numbers are those of one."""
    path = f"{warm}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PROCESSES": "2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [EXAMPLES / "train_sharded.sh"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "model.safetensors").exists()
    run = RunDirectory(tmp_path / "run")
    config = run.config()
    assert config.training.shard_tables_above == 100_000
    schema = PreparedDataset(tmp_path / "clicks").schema
    sizes = [4 * 32 * field.num_categories for field in schema.fields]
    assert max(sizes) > 100_000, "one is sharded"
    train(config, tmp_path / "alone")
    for mine, theirs in zip(run.metrics(), RunDirectory(tmp_path / "alone").metrics(), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        assert mine["valid_logloss"] == pytest.approx(theirs["valid_logloss"], rel=1e-3)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.mark.slow
def test_an_exported_model_behind_a_server(small_data: Path, tmp_path: Path) -> None:
    schema = PreparedDataset(small_data).schema
    model = build_model(DLRMConfig(dim=4, inner_dim=8, bottom_mlp=[5], top_mlp=[5]), schema)
    to_onnx(model, schema, tmp_path / "model.onnx", tables="int8")
    url = f"http://127.0.0.1:{free_port()}"
    folder = EXAMPLES / "serving"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", folder, "app:app", "--port", url[17:]]
    environment = {**os.environ, "MODEL": str(tmp_path / "model.onnx")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            words = [sys.executable, folder / "load.py", url, "--requests", "21", "--rows", "5"]
            load = subprocess.run(words, capture_output=True, text=True, timeout=120)
            assert load.stdout.startswith("21 requests of 5 rows by 4 clients: p50 "), load.stderr
            last = [field.num_categories - 1 for field in schema.one_valued]
            inputs: dict[str, Any] = {
                "dense": [[0.5] * len(schema.dense), [0.0] * len(schema.dense)],
                "ids": [last, [0] * len(last)],
            }
            module = serving_module(model, schema, "int8")
            assert module.inputs == tuple(inputs)
            with torch.no_grad():
                expected = module(*map(torch.tensor, inputs.values()))
            status, answer = post(url, {"inputs": inputs})
            assert status == 200
            assert answer["probability"] == pytest.approx(expected.tolist(), abs=1e-5)
            for change, said in (
                ({"ids": [last, [last[0] + 1, *last[1:]]]}, "the model refuses the rows"),
                ({"ids": [last, ["a", *last[1:]]]}, "no such arrays"),
                ({"ids": [last, last[1:]]}, "no such arrays"),
                ({"ids": [last]}, "the model refuses the rows"),
                ({"more": []}, "inputs are dense, ids; got dense, ids, more"),
            ):
                status, answer = post(url, {"inputs": {**inputs, **change}})
                assert status == 422, change
                assert said in answer["detail"]
        finally:
            server.terminate()


def post(url: str, body: object) -> tuple[int, Any]:
    request = Request(
        f"{url}/score", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)
