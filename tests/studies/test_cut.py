"""The rival that trains wide and cuts: what a run begins with, and an arm of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlet.data import PreparedDataset
from mlet.errors import ConfigError, RunError
from mlet.export import load_collapsed
from mlet.models import ModelConfig, build_model
from mlet.nn import Field, FieldEmbedding
from mlet.nn.compression import Pruned
from mlet.optim import FusedAdagrad
from mlet.studies import StudyConfig
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.predict import predict
from mlet.training.start import start_from_run

MLPS = {"dlrm": {"bottom_mlp": [8], "top_mlp": [8]}, "deepfm": {"mlp": [8]}}


def model_of(data: PreparedDataset, name: str, **changes: Any) -> Any:
    return build_model(ModelConfig.parse({"name": name, **MLPS[name], **changes}, "t"), data.schema)


@pytest.fixture(scope="module", params=sorted(MLPS))
def wide(request: Any, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("wide") / request.param
    values = {
        "data": str(small_data),
        "model": {"name": request.param, "dim": 6, **MLPS[request.param]},
        "training": {"epochs": 1, "batch_size": 128, "threads": 1},
    }
    train(RunConfig.parse(values, "test"), folder)
    return request.param, folder


def test_a_model_begins_with_the_weights_of_a_run(wide: Any, small_data: Path) -> None:
    name, folder = wide
    data = PreparedDataset(small_data)
    trained, _, _ = load_collapsed(RunDirectory(folder).model_file)
    expected = predict(trained, data.split("test"))
    for changes in ({}, {"inner_dim": 16}, {"compression": {"name": "low_rank", "rank": 6}}):
        model = model_of(data, name, dim=6, **changes)
        start_from_run(model, data, folder)
        np.testing.assert_allclose(predict(model, data.split("test")), expected, atol=1e-5)
    model = model_of(data, name, dim=6, inner_dim=8, table_bias=True)
    for stack in model.embedding.stacks():
        torch.nn.init.ones_(stack.table_bias)
    start_from_run(model, data, RunDirectory(folder).model_file)
    np.testing.assert_allclose(predict(model, data.split("test")), expected, atol=1e-5)


def test_cut_tables_are_the_best_of_their_rank(wide: Any, small_data: Path) -> None:
    name, folder = wide
    data = PreparedDataset(small_data)
    trained, _, _ = load_collapsed(RunDirectory(folder).model_file)
    model = model_of(data, name, dim=6, compression={"name": "low_rank", "rank": 2})
    start_from_run(model, data, folder)
    for field in data.schema.fields:
        table = trained.embedding.table(field.name).double()
        u, s, v = torch.linalg.svd(table, full_matrices=False)
        best = u[:, :2] * s[:2] @ v[:2]
        torch.testing.assert_close(
            model.embedding.table(field.name).double(), best, atol=1e-5, rtol=1e-4
        )


def test_pruned_tables_keep_the_largest_entries(wide: Any, small_data: Path) -> None:
    name, folder = wide
    data = PreparedDataset(small_data)
    trained, _, _ = load_collapsed(RunDirectory(folder).model_file)
    model = model_of(data, name, dim=6, compression={"name": "pruned", "keep": 0.25})
    start_from_run(model, data, folder)
    for field in data.schema.fields:
        table, cut = trained.embedding.table(field.name), model.embedding.table(field.name)
        kept = cut != 0
        assert kept.sum() == round(0.25 * table.numel())
        assert torch.equal(cut[kept], table[kept])
        assert table[~kept].abs().max() <= table[kept].abs().min()


def test_what_does_not_fit_is_refused(wide: Any, small_data: Path) -> None:
    name, folder = wide
    data = PreparedDataset(small_data)
    other = model_of(data, name, dim=6, **{key: [9] for key in MLPS[name]})
    with pytest.raises(RunError, match="only how tables are kept may differ"):
        start_from_run(other, data, folder)
    hashed = model_of(data, name, dim=6, compression={"name": "tensor_train", "rank": 2})
    with pytest.raises(RunError, match="cannot hold a trained table"):
        start_from_run(hashed, data, folder)


def test_pruned_tables_take_the_bytes_of_narrow_ones() -> None:
    for dim in (2, 4, 16):
        pruned = Pruned.at_bytes_of(dim, 64)
        layer = FieldEmbedding([Field("user", 5_000, 64, compression=pruned)])
        stored = sum(part.nbytes for part in layer.collapsed("user", "float32").values())
        assert stored == pytest.approx(4 * 5_000 * dim, rel=1e-3)


def test_pruned_entries_stay_zero_whatever_trains_them(small_data: Path) -> None:
    torch.manual_seed(0)
    layer = FieldEmbedding([Field("user", 50, 6, compression=Pruned(keep=0.3))])
    before = layer.table("user") != 0
    optimizer = FusedAdagrad(layer, lr=0.1)
    for _ in range(3):
        layer(torch.randint(50, (20, 1))).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.table("user") != 0, before)
    ids = torch.arange(50).unsqueeze(1)
    torch.testing.assert_close(layer(ids).squeeze(1), layer.table("user"))
    torch.testing.assert_close(layer.collapse()(ids), layer(ids))


def study(data: Path, **peer: object) -> StudyConfig:
    values = {
        "datasets": {"clicks": {"prepared": str(data)}},
        "models": {"dlrm": MLPS["dlrm"]},
        "optimizers": ["adagrad"],
        "dims": [2],
        "peers": {"cut": {"cut": {"dim": 6}, **peer}},
        "seeds": 2,
        "tuning": {"trials": 4, "halving": {"factor": 2, "first": 1}},
        "training": {"epochs": 2, "batch_size": 128},
        "resamples": 20,
    }
    return StudyConfig.parse(values, "study")


@pytest.mark.slow
def test_an_arm_that_is_pruned(mlet, small_data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "study.yaml").write_text(
        study(small_data, cut={"dim": 6, "by": "magnitude"}).to_yaml()
    )
    mlet("sweep", "study.yaml", "--out", "out", "--jobs", "2")
    (panel,) = json.loads((tmp_path / "out" / "study.json").read_text())["panels"]
    cut = next(arm for arm in panel["arms"] if arm["method"] == "cut")
    slt = next(arm for arm in panel["arms"] if arm["method"] == "slt")
    tables = sum(field.num_categories for field in PreparedDataset(small_data).schema.fields) * 8
    first_layer = 4 * 8 * (6 - 2)  # of the dense layers, what the wider model has more, at least
    assert slt["model_bytes"] > tables
    assert abs(cut["model_bytes"] - slt["model_bytes"]) < 0.05 * tables + 20 * first_layer


@pytest.mark.slow
def test_an_arm_that_is_cut(mlet, small_data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "study.yaml").write_text(study(small_data).to_yaml())
    mlet("sweep", "study.yaml", "--out", "out", "--jobs", "2")
    (panel,) = json.loads((tmp_path / "out" / "study.json").read_text())["panels"]
    cut = next(arm for arm in panel["arms"] if arm["method"] == "cut")
    slt = next(arm for arm in panel["arms"] if arm["method"] == "slt")
    assert cut["tuning"]["tried"] == slt["tuning"]["tried"] == 4
    folder = tmp_path / "out" / "runs" / "clicks" / "dlrm" / "adagrad" / "cut-d2"
    for run in folder.glob("*-wide/summary.json"):
        narrow = RunDirectory(run.parent.with_name(run.parent.name.removesuffix("-wide")))
        wide = RunDirectory(run.parent).config()
        assert (wide.model.dim, wide.model.compression, wide.training.epochs) == (6, None, 2)
        assert narrow.config().start == run.parent
        assert narrow.config().training.epochs == 1
        assert narrow.config().optimizer == wide.optimizer
    kept = [path for path in folder.glob("*/model.safetensors") if "-wide" not in str(path)]
    assert len(kept) == 2
    sizes = [field.num_categories for field in PreparedDataset(small_data).schema.fields]
    model, _, _ = load_collapsed(kept[0])
    served = sum(p.numel() for n, p in model.state_dict().items() if n.startswith("embedding."))
    assert served == sum(n * 2 + 2 * 6 for n in sizes)


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ({"cut": {"dim": 2}}, "cut.dim must be above every dimension"),
        ({"cut": {"dim": 6, "by": "luck"}}, "'rank' or 'magnitude'"),
        ({"inner_dim": 8}, "no settings but 'cut'"),
        ({"cut": {"dim": 6, "epoch": 2}}, "did you mean 'epochs'"),
    ],
)
def test_impossible_cuts(small_data: Path, peer: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(small_data, **peer)
