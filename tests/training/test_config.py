"""The configuration: one tree, three spellings, helpful errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mlet.cli.progressive import _recipe
from mlet.cli.settings import from_file
from mlet.errors import ConfigError
from mlet.settings import merge, parse_assignments
from mlet.training import RunConfig
from mlet.training.config import OptimizersConfig
from mlet.training.presets import recipe_optimizer, with_preset


def test_yaml_round_trip_is_complete(tmp_path: Path) -> None:
    config = RunConfig(data="data", optimizer=OptimizersConfig.same("adam"))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert RunConfig.load(tmp_path / "config.yaml") == config
    assert "learning_rate: 0.001" in config.to_yaml(), "defaults are written out"


def test_assignments_are_the_same_tree() -> None:
    values = parse_assignments(["model.dim=8", "model.top_mlp=[32, 16]", "training.patience=null"])
    assert values == {"model": {"dim": 8, "top_mlp": [32, 16]}, "training": {"patience": None}}
    assert merge({"model": {"dim": 4, "name": "dlrm"}}, values)["model"] == {
        "name": "dlrm", "dim": 8, "top_mlp": [32, 16]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainig": {}}, "unknown key 'trainig'; did you mean 'training'?"),
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"training": {"epochs": 0}}, "'training.epochs': Input should be greater than or equal"),
        ({"optimizer": {"tables": {"name": "lamb"}}}, "'optimizer.tables.name'"),
        ({"optimizer": {"tables": {"momentum": 0.9}}}, "known keys: learning_rate, name"),
        ({"model": {"dim": "wide"}}, "'model.dim'"),
        ({"optimizer": {"dense": {"learning_rate": float("nan")}}}, "learning_rate"),
    ],
)
def test_errors_name_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse({"data": "d", **values}, "test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_do_not_change(tmp_path: Path) -> None:
    config = RunConfig(data=tmp_path)
    for node, name, value in (
        (config, "data", Path("elsewhere")),
        (config.training, "epochs", 7),
        (config.model, "dim", 3),
        (config.optimizer.tables, "learning_rate", 1.0),
    ):
        before = getattr(node, name)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(node, name, value)
        assert getattr(node, name) == before


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match="No such file"):
        RunConfig.load(path)
    path.write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match=r"c\.yaml, line 2"):
        RunConfig.load(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="expected 'key: value' lines"):
        RunConfig.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        RunConfig.load(path)


def test_bad_assignments() -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_assignments(["training.epochs"])
    with pytest.raises(ConfigError, match="the value is not YAML"):
        parse_assignments(["a=[1"])


@pytest.mark.parametrize("name", ["criteo-kaggle", "avazu"])
def test_presets_hold_the_authors_settings(name: str) -> None:
    config = RunConfig.parse({"data": "d", **with_preset(name, {})}, name)
    assert config.optimizer.tables.name == config.optimizer.dense.name == "sgd"
    assert config.optimizer.tables.learning_rate == 0.2
    assert (config.training.batch_size, config.training.epochs) == (128, 1)
    assert config.model.top_mlp == [512, 256]
    with pytest.raises(
        ConfigError,
        match="no preset 'criteo'; there are: recipe, plain, paper, criteo-kaggle, avazu",
    ):
        with_preset("criteo", {})


def test_each_method_has_its_own_default_step_size() -> None:
    assert OptimizersConfig.same("sgd").tables.learning_rate == 0.1
    assert OptimizersConfig.same("adagrad").tables.learning_rate == 0.02
    assert OptimizersConfig().tables == OptimizersConfig.same("adagrad").tables
    assert OptimizersConfig.same("rowwise_adagrad").dense.name == "adagrad"
    assert OptimizersConfig.same("adam", 0.5).dense.learning_rate == 0.5


def test_the_recipe_and_the_papers_settings_differ_where_they_say() -> None:
    recipe, paper = (
        RunConfig.parse(with_preset(name, {"data": "d"}), name) for name in ("recipe", "paper")
    )
    assert (recipe.model.init, recipe.model.biased) == ("co_occurrence", True)
    assert (paper.model.init, paper.model.biased) == ("paper", False)
    assert (recipe.model.inner_dim, paper.model.inner_dim) == ("auto", 64)
    assert (recipe.optimizer.tables.name, paper.optimizer.tables.name) == ("adagrad", "sgd")
    assert recipe.optimizer.tables.damping > 0 == paper.optimizer.tables.damping
    assert recipe.optimizer.tables.matched_steps > paper.optimizer.tables.matched_steps


def with_recipe(**given: object) -> RunConfig:
    return RunConfig.parse(with_preset("recipe", {"data": "d", **given}), "test")


def test_what_is_given_stands_over_the_recipe() -> None:
    config = with_recipe(
        model={"inner_dim": 16, "init": "paper"},
        optimizer={"tables": {"learning_rate": 0.7}, "dense": {"name": "sgd"}},
    )
    model, tables, dense = config.model, config.optimizer.tables, config.optimizer.dense
    assert (model.inner_dim, model.init, model.biased) == (16, "paper", True)
    assert (tables.name, tables.learning_rate, tables.damping) == ("adagrad", 0.7, 0.5)
    assert (dense.name, dense.learning_rate) == ("sgd", 0.1), "not the step size of another method"


@pytest.mark.parametrize(
    ("model", "biased"),
    [
        ({}, True),
        ({"name": "dlrm", "interaction": "cat"}, False),
        ({"name": "deepfm"}, False),
        ({"name": "autoint"}, False),
        ({"name": "deepfm", "table_bias": True}, True),
        ({"name": "dlrm", "table_bias": False}, False),
    ],
)
def test_the_recipes_tables_have_biases_where_vectors_meet_in_products_alone(
    model: dict[str, object], biased: bool
) -> None:
    assert with_recipe(model=model).model.biased is biased


def test_an_optimizer_that_is_named_takes_a_files_settings_of_its_own_alone(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    tables = {"name": "adam", "learning_rate": 0.007, "damping": 3.0}
    file.write_text(yaml.safe_dump({"optimizer": {"tables": tables, "dense": {"name": "adam"}}}))
    assert from_file(file, "adam")["optimizer"] == {"tables": tables, "dense": {"name": "adam"}}
    assert from_file(file, "sgd")["optimizer"] == {}
    assert from_file(file, None)["optimizer"]["tables"] == tables


def test_fields_that_are_named_ordinary_bring_no_recipe() -> None:
    single = with_recipe(model={"inner_dim": None, "inner_dims": {"user": None}}).model
    assert (single.init, single.biased) == ("paper", False)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_the_recipe_has_step_sizes_for_every_method(name: str) -> None:
    config = with_recipe(optimizer={"tables": {"name": name}})
    expected = recipe_optimizer(name)
    assert config.optimizer.tables.learning_rate == expected["tables"]["learning_rate"]
    assert config.optimizer.tables.matched_steps
    assert config.optimizer.tables.damping == (0 if name == "sgd" else 0.5)
    assert config.optimizer.dense.name == ("adagrad" if name.endswith("adagrad") else name)
    with pytest.raises(ConfigError, match=r"optimizer\.tables\.name"):
        with_recipe(optimizer={"tables": {"name": "adamm"}})


def test_single_layer_and_compressed_tables_are_what_they_are() -> None:
    for given in ({"inner_dim": None}, {"compression": {"name": "hashing", "collisions": 2}}):
        model = with_recipe(model=given).model
        assert (model.inner_dim, model.init, model.biased) == (None, "paper", False)
    mixed = with_recipe(model={"inner_dim": None, "inner_dims": {"user": 8}}).model
    assert (mixed.inner_dim, mixed.init, mixed.biased) == (None, "co_occurrence", True)


def test_settings_of_two_layer_arms_are_put_over_the_recipe_and_not_over_the_models_own() -> None:
    assert _recipe("recipe", {}) == {"init": "co_occurrence", "table_bias": "auto"}
    assert _recipe("recipe", {"model": {"init": "paper"}}) == {"table_bias": "auto"}
    assert _recipe("plain", {}) == {}
