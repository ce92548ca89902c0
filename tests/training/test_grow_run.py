"""Runs that go on with another's model on data that extends its own."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import TableSchema, TableSource
from mlet.errors import ConfigError, MletError, RunError
from mlet.export import load_collapsed
from mlet.models import build_model
from mlet.reading import read_sealed
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.grow import with_grown
from mlet.training.loop import SilentObserver
from mlet.training.optimizers import Optimizers
from mlet.training.start import begin

SCHEMA = TableSchema.model_validate(
    {
        "label": "click",
        "dense": {"price": "standard"},
        "categorical": ["user", "item"],
        "multi_valued": {"tags": "|"},
    }
)


def write_rows(path: Path, users: range, seed: int) -> Path:
    draw = random.Random(seed)
    lines = ["click,price,user,item,tags"]
    for row in range(400):
        user, tags = draw.choice(users), "|".join(f"t{draw.randrange(5)}" for _ in range(row % 3))
        lines.append(f"{int(user % 3 == row % 2)},{row % 7},u{user},i{draw.randrange(9)},{tags}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, ``new`` extending ``old``, and a run on ``old`` that kept its state."""
    root = tmp_path_factory.mktemp("grow")
    for name, users in (("old", range(60)), ("new", range(40, 90))):
        source = TableSource([write_rows(root / f"{name}.csv", users, len(root.name))], SCHEMA)
        extend = root / "old" if name == "new" else None
        prepare(source, root / name, split=SplitRule("order"), extend=extend)
    train(config(root / "old"), root / "run")
    return root


MODEL: dict[str, Any] = {
    "name": "deepfm",
    "dim": 3,
    "mlp": [8],
    "inner_dim": 8,
    "inner_dims": {"item": None},
    "table_bias": True,
    "two_layer_first_order": True,
}


def config(data: Path, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {"data": str(data), "model": MODEL, **changes}
    training = {"batch_size": 64, "threads": 1, "epochs": 2, "patience": None, "keep_state": True}
    values["training"] = {**training, **changes.get("training", {})}
    return RunConfig.parse(values, "test")


def going_on(data: Path, run: Path, **changes: Any) -> RunConfig:
    grow = {"run": str(run), **changes.pop("grow", {})}
    values = with_grown({"data": str(data), "grow": grow, **changes}, "plain")
    return RunConfig.parse(values, "test")


def begun(settings: RunConfig, place: Path) -> tuple[Any, Optimizers]:
    """A model and its optimizers as training begins with them."""
    torch.manual_seed(settings.training.seed)
    data = PreparedDataset(settings.data)
    model = build_model(settings.model, data.schema)
    optimizers = Optimizers(settings.optimizer, model, settings.training.batch_size)
    begin(settings, model, optimizers, data, RunDirectory(place))
    return model, optimizers


@pytest.mark.parametrize("method", ["adagrad", "rowwise_adagrad", "adam", "sgd"])
def test_all_that_was_trained_goes_on(folder: Path, tmp_path: Path, method: str) -> None:
    dense = method.removeprefix("rowwise_")
    optimizer = {"tables": {"name": method}, "dense": {"name": dense}}
    train(config(folder / "old", optimizer=optimizer), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    best, last = run.load_best()["model"], run.load_last()["optimizers"]  # type: ignore[index]
    settings = going_on(folder / "new", tmp_path / "run")
    assert settings.optimizer == run.config().optimizer
    model, optimizers = begun(settings, tmp_path)
    state = model.state_dict()
    assert state.keys() == best.keys()
    grown = {name for name in state if state[name].shape != best[name].shape}
    assert grown == {name for name in best if name.endswith("user.inner")}
    assert len(grown) == 2, "its linear part has a table too"
    for name, tensor in state.items():
        rows = best[name].shape[0] if best[name].dim() else 0
        kept = tensor[:rows] if name in grown else tensor
        assert torch.equal(kept, best[name]), name
        if name in grown:
            spread = tensor[rows:] - best[name][0]
            assert 0 < spread.abs().max() <= len(tensor) ** -0.5
    now = optimizers.state_dict()
    for part in ("embeddings", "dense"):
        for place, states in last[part]["state"].items():
            for name, then in states.items():
                tensor = now[part]["state"][place][name]
                if tensor.shape != then.shape:  # users are the first of their matrix
                    assert not tensor[61:91].any()
                    tensor = torch.cat([tensor[:61], tensor[91:]])
                assert torch.equal(tensor, then)
        assert now[part]["param_groups"][0].get("step") == last[part]["param_groups"][0].get("step")


def test_widths_by_field_stay_where_vocabularies_grow(folder: Path, tmp_path: Path) -> None:
    """Numbers of categories would give others now; a collapsed file says which they were, too."""
    model = {**MODEL, "dim": 8, "inner_dim": 16, "dim_exponent": 0.4}
    train(config(folder / "old", model=model), tmp_path / "run")
    dims = RunDirectory(tmp_path / "run").config().model.field_dims
    schema = PreparedDataset(folder / "new").schema
    assert dims != config(folder / "new", model=model).model.dims_of(schema)
    for name, source in (("run", "run"), ("file", "run/model.safetensors")):
        settings = going_on(folder / "new", tmp_path / source, grow={"states": False})
        assert settings.model.field_dims == dims
        grown, _ = begun(settings, tmp_path / name)
        old, _, _ = load_collapsed(tmp_path / "run" / "model.safetensors")
        for field in schema.fields:
            known = old.embedding.table(field.name)
            now = grown.embedding.table(field.name)
            assert now.shape == (field.num_categories, dims[field.name])
            torch.testing.assert_close(now[: len(known)], known, rtol=1e-4, atol=1e-5)
    other = {"model": {"dim_exponent": 0.5}}
    with pytest.raises(ConfigError, match=r"another model\.dim_exponent \(0\.4 then, 0\.5 now\)"):
        train(going_on(folder / "new", tmp_path / "run", **other), tmp_path / "third")


def test_without_new_categories_it_is_the_run_that_goes_on(folder: Path, tmp_path: Path) -> None:
    """With one step an epoch, two epochs of one run are one and one of two."""
    large = {
        "training": {"batch_size": 320, "epochs": 1},
        "optimizer": {"tables": {"name": "adam"}},
    }
    train(config(folder / "old", **large), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "longer")
    train(going_on(folder / "old", tmp_path / "run"), tmp_path / "second")
    resume(tmp_path / "longer", epochs=2)
    one, other = (RunDirectory(tmp_path / name).load_last() for name in ("second", "longer"))
    assert one is not None
    assert other is not None
    for name, tensor in one["model"].items():
        torch.testing.assert_close(tensor, other["model"][name])
    states = one["optimizers"]["embeddings"]["state"]
    for place, parts in other["optimizers"]["embeddings"]["state"].items():
        for name, tensor in parts.items():
            torch.testing.assert_close(states[place][name], tensor)


class Stop(SilentObserver):
    """Ends training at a step, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, loss: float, rows: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_run_says_where_it_came_from_and_is_one_like_others(folder: Path, tmp_path: Path) -> None:
    settings = going_on(folder / "new", folder / "run")
    train(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "stopped", Stop(3))
    resume(tmp_path / "stopped")
    files = [RunDirectory(tmp_path / name).model_file for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    known = read_sealed(tmp_path / "whole" / "grown.json", RunError, "")
    assert known["run"] == str(folder / "run")
    assert known["run_seal"] == RunDirectory(folder / "run").seal()
    assert known["states"] is True
    assert known["fields"]["user"] == {"then": 61, "now": 91}
    # Its rows are those of its vocabulary, and it can be gone on from itself.
    model, _, schema = load_collapsed(files[0])
    assert model.embedding.table("user").shape == (91, 3)
    assert schema.fields[0].num_categories == 91
    again = going_on(folder / "new", tmp_path / "whole", training={"epochs": 1})
    assert train(again, tmp_path / "again").epochs == 1


def test_a_collapsed_file_goes_on_in_two_layers(folder: Path, tmp_path: Path) -> None:
    file = RunDirectory(folder / "run").model_file
    model = {"inner_dim": 8, "table_bias": True}
    settings = going_on(folder / "new", file, model=model, grow={"noise": 0})
    assert settings.model.dim == 3
    with pytest.warns(UserWarning, match="optimizer states start anew: a collapsed file holds"):
        grown, _ = begun(settings, tmp_path)
    plain, _, _ = load_collapsed(file)
    for field in ("user", "item", "tags"):
        then, now = plain.embedding.table(field), grown.embedding.table(field)
        torch.testing.assert_close(now[: len(then)], then, rtol=1e-4, atol=1e-5)
        more = now[len(then) :]
        torch.testing.assert_close(more, then[:1].expand_as(more), rtol=1e-4, atol=1e-5)
    assert grown.embedding.named_factors()["user"].inner_dim == 8


def test_states_begin_anew_where_there_are_none_or_on_request(folder: Path, tmp_path: Path) -> None:
    train(config(folder / "old", training={"keep_state": False, "epochs": 1}), tmp_path / "run")
    settings = going_on(folder / "new", tmp_path / "run")
    with pytest.warns(UserWarning, match=r"start anew: .*run kept none \(training.keep_state\)"):
        _, optimizers = begun(settings, tmp_path)
    assert not optimizers.state_dict()["embeddings"]["state"]
    other = {"optimizer": {"tables": {"name": "adam"}, "dense": {"name": "adam"}}}
    settings = going_on(folder / "new", folder / "run", grow={"states": False}, **other)
    begun(settings, tmp_path)  # without a word
    assert settings.optimizer.tables.learning_rate == 0.001
    assert read_sealed(tmp_path / "grown.json", RunError, "")["states"] is False


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": {"dim": 5}}, r"run cannot go on with another model\.dim \(3 then, 5 now\)"),
        ({"model": {"mlp": [4]}}, r"model\.mlp \(\[8\] then, \[4\] now\); leave it out"),
        ({"model": {"inner_dim": None}}, r"model\.inner_dim .*or go on from its collapsed file"),
        ({"model": {"name": "dlrm"}}, r"another model\.name \(deepfm then, dlrm now\)"),
        (
            {"optimizer": {"tables": {"name": "adam"}}},
            r"optimizer\.tables\.name .*grow\.states=fal",
        ),
        ({"start": "elsewhere"}, "start and grow both say what training begins with"),
        ({"grow": {"noise": -1}}, "'noise': Input should be greater than or equal to 0"),
    ],
)
def test_another_model_is_refused_before_there_is_a_run(
    folder: Path, tmp_path: Path, changes: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error):
        train(going_on(folder / "new", folder / "run", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_logs_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    train(config(folder / "old", log=[f"tensorboard={tmp_path / 'log'}"]), tmp_path / "run")
    assert going_on(folder / "new", tmp_path / "run").log == []
    train(going_on(folder / "new", tmp_path / "run"), tmp_path / "more")


def test_shared_rare_rows_do_not_grow(folder: Path, tmp_path: Path) -> None:
    rare = config(folder / "old", model={**MODEL, "min_count": 3}, training={"epochs": 1})
    train(rare, tmp_path / "run")
    for source in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        with pytest.raises(ConfigError, match="rare categories that share rows"):
            train(going_on(folder / "new", source), tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_other_data_and_other_sources_are_refused(
    folder: Path, tmp_path: Path, small_data: Path
) -> None:
    other = tmp_path / "other"
    prepare(TableSource([folder / "new.csv"], SCHEMA), other)
    file = RunDirectory(folder / "run").model_file
    for source in (folder / "run", file):
        with pytest.raises(RunError, match=r"other does not extend the data set of .*'user'"):
            train(going_on(other, source), tmp_path / "out")
    # Other fields than those that the run's settings name.
    k = {"dim": 4, "inner_dims": {"user": 9}}
    train(config(folder / "old", model=k, training={"epochs": 1}), tmp_path / "by-field")
    with pytest.raises(RunError, match=r"does not extend the data set of .*by-field"):
        train(going_on(small_data, tmp_path / "by-field"), tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        train(config(folder / "old"), tmp_path / "unfinished", Stop(2))
    for place, error in (("unfinished", "the run is unfinished"), ("none", "no such file")):
        with pytest.raises(MletError, match=error):
            train(going_on(folder / "new", tmp_path / place), tmp_path / "out")
    compressed = {"model": {"dim": 4, "compression": {"name": "hashing"}}}
    train(config(folder / "old", **compressed), tmp_path / "hashed")
    for source in (tmp_path / "hashed", RunDirectory(tmp_path / "hashed").model_file):
        with pytest.raises(MletError, match=r"is kept in Hash|its tables are compressed"):
            train(going_on(folder / "new", source), tmp_path / f"out-{source.name}")
