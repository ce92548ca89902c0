"""Runs whose tables are narrower for some fields."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo import CONFIGS

from mlet.data import BatchLoader, PreparedDataset
from mlet.errors import ConfigError, MletError
from mlet.export import load_collapsed
from mlet.models import AnyModelConfig, CTRModel, build_model
from mlet.nn.field_dims import field_dim
from mlet.training import RunConfig, RunDirectory, resume, train, with_inner_dims
from mlet.training.config import OptimizersConfig
from mlet.training.optimizers import Optimizers
from mlet.training.start import ROW_NORM, start_from_co_occurrence

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]


def config(data: Path, *, training: dict[str, Any] | None = None, **model: Any) -> RunConfig:
    values = {
        "data": str(data),
        "model": {"name": "deepfm", "dim": 4, "inner_dim": 8, "mlp": [8], **model},
        "training": {"epochs": 2, "batch_size": 256, "threads": 1, **(training or {})},
    }
    return RunConfig.parse(values, "test")


@torch.no_grad()
def clear(wide: CTRModel, dims: dict[str, int]) -> None:
    """Let the columns of a wide model's tables beyond a field's own be zero."""
    for name, dim in dims.items():
        wide.embedding.parts(name)["projection"][:, dim:] = 0


@pytest.mark.parametrize(
    "kind", [kind for kind in CONFIGS if kind != "lr" and "by field" not in kind]
)
def test_every_model_is_the_one_of_wide_tables_with_zeros(kind: str, small_data: Path) -> None:
    """Logits, and all parameters after steps with Adagrad, in float64."""
    torch.manual_seed(0)
    data, settings = PreparedDataset(small_data), CONFIGS[kind]
    dims = {"C1": 1, "C2": 3, "C3": 2}
    mine: AnyModelConfig = settings.model_copy(update={"field_dims": dims})
    narrow, wide = (build_model(one, data.schema).double() for one in (mine, settings))
    state = {
        name: nn.functional.pad(value, (0, 3 - value.shape[1]))
        if name.startswith("embedding.") and name.endswith("projection")
        else value
        for name, value in narrow.state_dict().items()
    }
    wide.load_state_dict(state)
    models = narrow, wide
    optimizers = [Optimizers(OptimizersConfig.same("adagrad", 0.05), m, 64) for m in models]
    batches = iter(BatchLoader(data.split("train"), 64).epoch())
    for _ in range(3):
        batch = next(batches)
        batch = batch._replace(dense=batch.dense.double())
        logits = [model(batch) for model in models]
        torch.testing.assert_close(*logits, rtol=1e-8, atol=1e-10)
        for optimizer, found in zip(optimizers, logits, strict=True):
            optimizer.zero_grad()
            (found * (0.5 - batch.labels["label"].double())).exp().mean().backward()
            optimizer.step()
        clear(wide, dims)
    now = wide.state_dict()
    for name, value in narrow.state_dict().items():
        theirs = now[name] if value.dim() == 0 else now[name][..., : value.shape[-1]]
        torch.testing.assert_close(value, theirs, rtol=1e-5, atol=1e-7)


def test_the_rule_becomes_numbers_that_a_run_keeps(small_data: Path, tmp_path: Path) -> None:
    data = PreparedDataset(small_data)
    sizes = {field.name: field.num_categories for field in data.schema.fields}
    train(config(small_data, dim_exponent=0.3, field_dims={"C2": 3}), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    expected = {name: field_dim(n, min(sizes.values()), 4, 0.3) for name, n in sizes.items()}
    expected["C2"] = 3
    assert run.config().model.field_dims == expected
    assert expected["C1"] < 4 == expected["C3"]
    model, settings, _ = load_collapsed(run.model_file)
    assert settings.field_dims == expected
    assert {field.name: field.dim for field in model.embedding.fields} == expected
    # A weight for each category beside them, and four bytes a number.
    tables = 4 * sum(sizes[name] * (dim + 1) for name, dim in expected.items())
    assert model.table_bytes() == tables
    # Resumed, from a file, and again from the settings it kept: the same weights, to the bit.
    more = {"epochs": 1, "keep_state": True}
    train(config(small_data, field_dims=expected, training=more), tmp_path / "half")
    resume(tmp_path / "half", epochs=2)
    kept = run.config()
    train(kept, tmp_path / "again")
    mapped = kept.training.model_copy(update={"tables_in": "file"})
    train(kept.model_copy(update={"training": mapped}), tmp_path / "mapped")
    whole = load_collapsed(run.model_file)[0].state_dict()
    for name in ("half", "again", "mapped"):
        other = load_collapsed(RunDirectory(tmp_path / name).model_file)[0].state_dict()
        assert whole.keys() == other.keys()
        assert all(torch.equal(whole[key], other[key]) for key in whole), name


def test_k_is_chosen_by_the_fields_own_d(small_data: Path) -> None:
    # At d = 32 all tables stay ordinary; where a field is narrower it is worth two layers.
    wide = {"dim": 32, "inner_dim": "auto"}
    assert with_inner_dims(config(small_data, **wide)).model.inner_dim is None
    model = with_inner_dims(config(small_data, **wide, field_dims={"C1": 2})).model
    built = build_model(model, PreparedDataset(small_data).schema)
    assert {f.name: f.inner_dim for f in built.embedding.fields} == {
        "C1": 64, "C2": None, "C3": None,
    }  # fmt: skip


def test_ordinary_tables_start_from_vectors_of_their_own_width(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    model = build_model(
        config(small_data, inner_dim=None, field_dims={"C1": 2, "C2": 1}).model, data.schema
    )
    start_from_co_occurrence(model, data)
    for name, dim in (("C1", 2), ("C2", 1), ("C3", 4)):
        rows = model.embedding.table(name)
        assert rows.shape[1] == dim
        lengths = rows.norm(dim=1)[1:]
        torch.testing.assert_close(lengths, torch.full_like(lengths, ROW_NORM))


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ({"field_dims": {"C1": 5}}, ConfigError, "d = 5 of field 'C1' is above dim = 4; lower"),
        ({"field_dims": {"C9": 2}}, ConfigError, "field_dims: no field 'C9'; the fields are C1, "),
        ({"field_dims": {"C1": 0}}, ConfigError, "'model.field_dims.C1': Input should be greater"),
        ({"dim_exponent": -0.1}, ConfigError, "'model.dim_exponent': Input should be greater"),
        (
            {
                "field_dims": {"C1": 2},
                "compression": {"name": "low_rank", "rank": 3},
                "inner_dim": None,
            },
            ConfigError,
            "low_rank: rank 3 is above the embedding dimension 2 of C1; lower it",
        ),
    ],
)
def test_what_cannot_be(
    model: dict[str, Any], error: type[MletError], says: str, small_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        train(config(small_data, **model), tmp_path / "run")


@pytest.mark.slow
def test_through_the_command_line(mlet: Mlet, small_data: Path, tmp_path: Path) -> None:
    words = ("--model", "deepfm", "--dim", 8, "--epochs", 1, "--set", "model.mlp=[8]")
    said = mlet("train", small_data, "--out", "run", *words, "--set", "model.dim_exponent=0.4")
    assert "d = 8: C3\n" in said.stdout
    assert "d = 4: C2\n" in said.stdout
    assert "d = 2: C1\n" in said.stdout
    mlet("inspect", "run", "--out", "page")
    mlet("collapse", "run", "--out", "small.safetensors", "--precision", "pq2")
    assert "0.0e+00" in mlet("export", "small.safetensors", "-o", "m.pt2", "--to", "torch").stdout
    wrong = mlet(
        "train", small_data, "--out", "next", *words, "--set", "start=run",
        "--set", "model.field_dims={C1: 3}", code=2,
    )  # fmt: skip
    assert wrong.stderr.endswith("; give every field the d that it had, or train anew\n")
    wrong = mlet(
        "compare", small_data, "--out", "compared", "--dims", "2,4",
        "--set", "model.field_dims={C1: 3}", code=2,
    )  # fmt: skip
    assert "d = 3 of field 'C1' is above dim = 2; lower it, or raise dim" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
