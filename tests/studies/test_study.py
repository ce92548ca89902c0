"""The study file: what it may say, and the arms it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlet.errors import ConfigError, DataError
from mlet.settings import load_yaml
from mlet.studies import StudyConfig
from mlet.studies.datasets import DatasetConfig, make_ready
from mlet.studies.ledger import Ledger
from mlet.studies.runs import run_path
from mlet.studies.study import RANGES

STUDIES = Path(__file__).parents[2] / "studies"
BASE = {
    "datasets": {"clicks": {"synthetic": {"rows": 2_000}}},
    "models": ["dlrm", "deepfm"],
    "optimizers": ["sgd", "adam"],
    "dims": [2, 4],
    "inner_dims": [8],
}


def study(**changes: object) -> StudyConfig:
    return StudyConfig.parse({**BASE, **changes}, "study")


def test_every_combination_is_an_arm_once() -> None:
    arms = study(peers={"k=d": {"inner_dim": "dim"}}).arms()
    names = [arm.name for arm in arms]
    assert len(names) == len(set(names)) == 2 * 2 * 2 * 3
    assert "clicks/deepfm/adam/mlet-k8-d4" in names
    config = study(peers={"k=d": {"inner_dim": "dim"}})
    for arm in config.arms():
        run = config.run(arm, {"learning_rate": 0.5, "weight_decay": 1e-4}, 7, Path("data"))
        assert run.model.name == arm.model
        assert run.model.dim == arm.dim
        assert run.model.inner_dim == {"slt": None, "mlet-k8": 8, "k=d": arm.dim}[arm.method.name]
        assert run.optimizer.tables.name == arm.optimizer
        assert run.optimizer.tables.learning_rate == run.optimizer.dense.learning_rate == 0.5
        assert run.optimizer.tables.weight_decay == 1e-4
        assert (run.training.seed, run.training.threads) == (7, 1)


def test_every_setting_that_may_be_tuned_arrives_and_has_a_folder(tmp_path: Path) -> None:
    ranges = {name: [0.1, 10.0] for name in RANGES}
    config = study(optimizers=["adagrad"], tuning={"trials": 6, **ranges})
    ledger = Ledger(config, f"sqlite:///{tmp_path / 'study.db'}")
    arm = next(arm for arm in config.arms() if arm.method.kind == "mlet")
    claim = ledger.claim(arm)
    assert claim is not None
    assert set(claim.setting) == {"learning_rate", *RANGES}
    run = config.run(arm, claim.setting, 0, Path("data"))
    tables = run.optimizer.tables
    found = {
        "learning_rate": tables.learning_rate,
        "weight_decay": tables.weight_decay,
        "damping": tables.damping,
        "init_scale": run.model.init_scale,
        "dense_learning_rate": run.optimizer.dense.learning_rate,
    }
    assert found == claim.setting
    paths = {run_path(tmp_path, arm.name, claim.setting, 0)}
    for name in claim.setting:
        paths.add(run_path(tmp_path, arm.name, {**claim.setting, name: 77.0}, 0))
    assert len(paths) == 1 + len(claim.setting)


def test_mlet_arms_have_settings_of_their_own() -> None:
    config = study(
        mlet={"table_bias": True, "init": "co_occurrence"}, peers={"bias": {"table_bias": True}}
    )
    found = {}
    for arm in config.arms():
        model = config.run(arm, {"learning_rate": 0.5}, 7, Path("data")).model
        found[arm.method.name] = (model.table_bias, model.init)
    assert found == {
        "slt": (False, "paper"),
        "mlet-k8": (True, "co_occurrence"),
        "bias": (True, "paper"),
    }


def test_the_recipes_biases_go_by_the_model() -> None:
    config = study(models=["dlrm", "deepfm"])
    found = {
        arm.model: config.run(arm, {"learning_rate": 0.5}, 7, Path("data")).model.biased
        for arm in config.arms()
        if arm.method.kind == "mlet"
    }
    assert found == {"dlrm": True, "deepfm": False}


@pytest.mark.parametrize(
    ("given", "name"),
    [({"init": "paper"}, "init"), ({"table_bias": False}, "table_bias")],
)
def test_a_recipe_that_would_not_be_the_same_for_all_models_is_refused(
    given: dict[str, object], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is given to some models and not to others"):
        study(models={"dlrm": {}, "fm": given})
    same = study(models={"dlrm": given, "fm": given})
    assert same.mlet is not None
    assert name not in same.mlet


def test_the_dense_step_size_keeps_its_ratio() -> None:
    optimizers = {
        "mine": {
            "tables": {"name": "adagrad", "learning_rate": 0.04},
            "dense": {"name": "adam", "learning_rate": 0.001},
        }
    }
    config = study(optimizers=optimizers)
    run = config.run(config.arms()[0], {"learning_rate": 0.4}, 0, Path("data"))
    assert run.optimizer.dense.learning_rate == pytest.approx(0.01)
    assert config.rates(config.arms()[0]) == (0.04 / 8, 0.04 * 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimz": [2]}, "unknown key 'dimz'; did you mean 'dims'"),
        ({"models": ["dlrn"]}, "'models.dlrn.name': no model 'dlrn'; did you mean 'dlrm'"),
        ({"peers": {"slt": {}}}, "'slt' is the name of a method"),
        ({"peers": {"mlet-k8": {}}}, "'mlet-k8' is the name of a method"),
        ({"peers": {"a": {"dim": 3}}}, "'dim' is the study's to set"),
        ({"peers": {"a": {"compresion": {}}}}, "did you mean 'compression'"),
        ({"peers": {"a/b": {}}}, "peers"),
        ({"datasets": {"a": {}}}, "exactly one of 'prepared', 'synthetic' and 'format'"),
        ({"datasets": {"a": {"format": "criteo"}}}, "'format' and 'files' belong together"),
        ({"datasets": {"a": {"format": "table", "files": ["x"]}}}, "'schema_file' belong together"),
        ({"tuning": {"weight_decay": [1e-3, 1e-5]}}, "first number must be below its second"),
        ({"mlet": {"inner_dim": 3}}, "mlet: 'inner_dim' is the study's to set"),
        ({"mlet": {"table_bais": True}}, "table_bias"),
        ({"tuning": {"damping": [0.1, 1]}}, "tuning.damping: optimizer 'sgd' is SGD"),
        ({"tuning": {"damping": [0.1, 1], "learning_rates": [0.1]}}, "leave no damping to choose"),
        ({"tuning": {"span": 1}}, "greater than 1"),
        ({"seeds": 0}, "'seeds': Input should be greater"),
        ({"models": {"dlrm": {"top_mpl": [3]}}}, "'models.dlrm.top_mpl'; did you mean 'top_mlp'"),
        ({"datasets": {"a": {"prepard": "x"}}}, "'datasets.a.prepard'; did you mean 'prepared'"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(**changes)


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_published_studies_are_valid_and_name_every_peer(path: Path) -> None:
    config = StudyConfig.load(path)
    again = StudyConfig.parse(load_yaml(path), str(path))
    assert config == again
    for arm in config.arms():
        config.run(arm, {"learning_rate": 0.1}, 0, Path("data"))


def test_the_authors_settings() -> None:
    for name, bottom, every in (
        ("criteo-kaggle", [512, 256, 64], 3_000),
        ("avazu", [256, 64], 30_000),
    ):
        config = StudyConfig.load(STUDIES / f"{name}.yaml")
        model = config.models["dlrm"]
        assert (model.bottom_mlp, model.top_mlp) == (bottom, [512, 256])  # type: ignore[union-attr]
        tables = config.optimizers["sgd"].tables
        assert (tables.name, tables.learning_rate) == ("sgd", 0.2)
        training = config.training
        assert (training.batch_size, training.epochs, training.validate_every) == (128, 1, every)


def test_data_is_made_once_and_never_mixed_up(tmp_path: Path) -> None:
    config = DatasetConfig.parse({"synthetic": {"rows": 500}}, "data")
    path = make_ready(config, tmp_path / "clicks", lambda *_: None)
    stamp = (path / "schema.json").stat().st_mtime_ns
    assert make_ready(config, tmp_path / "clicks", lambda *_: None) == path
    assert (path / "schema.json").stat().st_mtime_ns == stamp
    other = DatasetConfig.parse({"synthetic": {"rows": 600}}, "data")
    with pytest.raises(ConfigError, match="holds data made with other settings"):
        make_ready(other, tmp_path / "clicks", lambda *_: None)
    ready = DatasetConfig.parse({"prepared": str(path)}, "data")
    assert make_ready(ready, tmp_path / "unused", lambda *_: None) == path
    assert not (tmp_path / "unused").exists()


def test_data_without_an_auc_is_refused_before_training(tmp_path: Path) -> None:
    rows = "\n".join(f"{1 if i < 70 else -1} {i % 7}:1 {10 + i % 5}:1" for i in range(100))
    (tmp_path / "clicks.libfm").write_text(rows + "\n")
    config = DatasetConfig.parse(
        {"format": "libfm", "files": [str(tmp_path / "clicks.libfm")], "split": "order"}, "data"
    )
    with pytest.raises(DataError, match="the valid split has only labels 0, so AUC is undefined"):
        make_ready(config, tmp_path / "clicks", lambda *_: None)


def test_files_may_lie_where_the_environment_says(
    criteo_sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DatasetConfig.parse(
        {"format": "criteo", "files": ["${MY_DATA}/" + criteo_sample.name]}, "test"
    )
    monkeypatch.delenv("MY_DATA", raising=False)
    with pytest.raises(ConfigError, match="no variable MY_DATA; set it"):
        make_ready(config, tmp_path / "made", lambda what, done, total: None)
    monkeypatch.setenv("MY_DATA", str(criteo_sample.parent))
    made = make_ready(config, tmp_path / "made", lambda what, done, total: None)
    assert make_ready(config, tmp_path / "made", lambda what, done, total: None) == made


def test_one_may_take_some_of_the_data_sets(mlet, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = "datasets: {a: {prepared: nowhere}, b: {prepared: neither}}\nmodels: [dlrm]\n"
    (tmp_path / "two.yaml").write_text(f"{text}optimizers: [adagrad]\ndims: [2]\n")
    assert "nowhere" in mlet("sweep", "two.yaml", "--datasets", "a", code=2).stderr
    refused = mlet("sweep", "two.yaml", "--datasets", "c", code=2).stderr
    assert "has no 'c'; it has a, b" in refused
