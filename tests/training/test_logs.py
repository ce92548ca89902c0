"""``log``: a run's metrics in TensorBoard's event files and in MLflow's store, read back."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlet.cli import main
from mlet.errors import ConfigError, RunError, TrainingError
from mlet.settings import load_yaml
from mlet.studies.compare import CompareConfig
from mlet.training import RunConfig, resume, train
from mlet.training.evaluate import evaluate
from mlet.training.load import load_for_evaluation
from mlet.training.logs import places
from mlet.training.observer import SilentObserver

pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed: make test installs it")
pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

Series = dict[str, list[tuple[int, float]]]
MODEL = {"name": "dlrm", "dim": 4, "inner_dim": 12, "bottom_mlp": [8], "top_mlp": [8]}


def config(data: Path, *log: str, **training: object) -> RunConfig:
    settings = {"batch_size": 16, "epochs": 2, "patience": None, "threads": 1, **training}
    values = {"data": str(data), "model": MODEL, "training": settings, "log": list(log)}
    return RunConfig.parse(values, "test")


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def of_tensorboard(folder: Path) -> Series:
    found = events(folder)
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)]
            for tag in found.Tags()["scalars"]}  # fmt: skip


@dataclass(frozen=True)
class Store:
    """A database of MLflow's, all runs of this module in it."""

    uri: str

    def run(self, root: Path) -> Any:
        return MlflowClient(self.uri).get_run(
            json.loads((root / "mlflow.json").read_text())["run_id"]
        )

    def series(self, root: Path) -> Series:
        run, client = self.run(root), MlflowClient(self.uri)
        return {
            key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


@pytest.fixture(scope="module")
def logged(small_data: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run by the command line."""
    folder = tmp_path_factory.mktemp("logged")
    settings = config(small_data).model_copy(update={"log": []})
    (folder / "run.yaml").write_text(settings.to_yaml())
    words = ("train", "--config", folder / "run.yaml", "--preset", "plain", "--out", folder / "run")
    logs = ("--log", "tensorboard", "--log", f"mlflow={store.uri}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mlet", *map(str, (*words, *logs))])
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "clicks")
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code in (0, None)
    return folder / "run"


def without_speed(series: Series) -> Series:
    return {tag: values for tag, values in series.items() if tag != "train/rows_per_second"}


def test_both_logs_hold_what_the_run_holds(logged: Path, store: Store) -> None:
    found = of_tensorboard(logged / "tensorboard")
    records = [json.loads(line) for line in (logged / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((logged / "summary.json").read_text())
    assert len(records) == 8
    for metric in ("auc", "logloss", "calibration"):
        expected = [(record["step"], record[f"valid_{metric}"]) for record in records]
        assert found[f"valid/{metric}"] == [(s, pytest.approx(v, rel=1e-6)) for s, v in expected]
        assert found[f"best/{metric}"] == [
            (summary["steps"], pytest.approx(summary["valid"][metric], rel=1e-6))
        ]
    assert found["best/step"] == [(summary["steps"], summary["best_step"])]
    (overall, *_) = evaluate(*load_for_evaluation(logged, None), samples=1)
    assert {name: found[f"test/{name}"] for name in overall.scores} == {
        name: [(summary["steps"], pytest.approx(value, rel=1e-6))]
        for name, value in overall.scores.items()
    }
    # Every hundredth step, and every validation with what came since: each step is in one mean.
    steps = [step for step, _ in found["train/loss"]]
    assert steps == sorted({*range(100, summary["steps"], 100), *(r["step"] for r in records)})
    losses, since, last = dict(found["train/loss"]), 0, 0
    for record in records:
        own = [step for step in steps if since < step <= record["step"]]
        total = 0.0
        for step in own:
            total, last = total + losses[step] * (step - last), step
        assert total / (record["step"] - since) == pytest.approx(record["train_loss"], rel=1e-5)
        since = record["step"]
    assert [step for step, _ in found["train/rows_per_second"]] == steps
    assert min(value for _, value in found["train/rows_per_second"]) > 0
    in_store = store.series(logged)
    assert in_store.keys() == found.keys()
    for tag, values in found.items():
        assert in_store[tag] == [(step, pytest.approx(v, rel=1e-6)) for step, v in values], tag


def test_settings_are_hyperparameters(logged: Path, store: Store, small_data: Path) -> None:
    run = store.run(logged)
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, run.data.tags["mlet.run"]) == ("run", str(logged))
    experiment = MlflowClient(store.uri).get_experiment(run.info.experiment_id)
    assert experiment.name == "clicks"
    params = run.data.params
    assert params["data"] == str(small_data)
    assert (params["model.dim"], params["model.bottom_mlp"]) == ("4", "[8]")
    assert (params["training.patience"], params["model.inner_dims"]) == ("null", "{}")
    assert params["optimizer.tables.learning_rate"] == "0.02"
    kept = load_yaml(logged / "config.yaml")
    assert kept["log"] == ["tensorboard", f"mlflow={store.uri}"]
    leaves = [key for part in ("model", "training") for key in kept[part]]
    assert {key.rpartition(".")[2] for key in params} >= set(leaves)
    found = events(logged / "tensorboard")
    start = HParamsPluginData.FromString(
        found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    assert set(start.hparams) == set(params)
    assert start.hparams["model.dim"].number_value == 4
    assert start.hparams["model.bottom_mlp"].string_value == "[8]"
    about = HParamsPluginData.FromString(
        found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    ).experiment
    assert {info.name.tag for info in about.metric_infos} >= {"test/auc", "best/logloss"}
    assert "_hparams_/session_end_info" in found.Tags()["tensors"] + list(found.summary_metadata)
    (text,) = found.Tensors("config/text_summary")
    assert b"bottom_mlp:" in text.tensor_proto.string_val[0]


class At(SilentObserver):
    """Does something at a step."""

    def __init__(self, step: int, do: Callable[[], None]) -> None:
        self.left, self.do = step, do

    def step(self, loss: float, rows: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.do()


def interrupt() -> None:
    raise KeyboardInterrupt


class Killed(Exception):
    """Ends training as a lost machine does: no checkpoint is made."""


def kill() -> None:
    raise Killed


def test_a_resumed_run_goes_on_in_its_logs(
    logged: Path, store: Store, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = config(small_data, "tensorboard=logs/one", f"mlflow={store.uri}", keep_state=True)
    out = tmp_path / "run"
    steps = json.loads((logged / "summary.json").read_text())["steps"]
    with pytest.raises(KeyboardInterrupt):
        train(settings, out, At(steps // 2 + 7, interrupt))
    assert store.run(out).info.status == "KILLED"
    monkeypatch.chdir("/")  # places are those of where it was begun
    with pytest.raises(Killed):
        resume(out, At(201 - (steps // 2 + 7), kill))
    assert store.run(out).info.status == "FAILED"
    before = store.series(out)
    assert before["train/loss"][-1][0] > before["valid/auc"][-1][0], "some steps are made again"
    resume(out)
    assert store.run(out).info.status == "FINISHED"
    whole = without_speed(of_tensorboard(logged / "tensorboard"))
    for found in (of_tensorboard(tmp_path / "logs" / "one"), store.series(out)):
        assert found.keys() == {*whole, "train/rows_per_second"}
        for tag, values in without_speed(found).items():
            points = [step for step, _ in values]
            assert points == sorted(set(points)), "each step once"
            if tag != "train/loss":  # whose means begin anew where it went on
                assert values == [(step, pytest.approx(v, rel=1e-6)) for step, v in whole[tag]]
        assert dict(found["train/loss"]).keys() >= dict(whole["train/loss"]).keys()
    resume(out, epochs=3)
    run = store.run(out)
    assert (run.data.params["training.epochs"], run.info.status) == ("2", "FINISHED")
    assert run.data.tags["continued.training.epochs"] == "3"
    assert [step for step, _ in store.series(out)["test/auc"]] == [steps, steps // 2 * 3]
    (folder,) = (tmp_path / "logs").iterdir()
    assert of_tensorboard(folder)["valid/auc"][-1][0] == steps // 2 * 3


def test_a_run_that_diverges_has_failed(store: Store, small_data: Path, tmp_path: Path) -> None:
    settings = config(small_data, f"mlflow={store.uri}")
    tables = settings.optimizer.at(1e30)
    with pytest.raises(TrainingError):
        train(settings.model_copy(update={"optimizer": tables}), tmp_path / "run")
    assert store.run(tmp_path / "run").info.status == "FAILED"


def test_a_store_that_is_lost_does_not_stop_training(
    store: Store, small_data: Path, logged: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(Path(store.uri.removeprefix("sqlite:///")).read_bytes())

    def lose() -> None:
        with sqlite3.connect(file) as database:
            database.execute("DROP TABLE metrics")

    settings = config(small_data, f"mlflow=sqlite:///{file}", "tensorboard")
    with pytest.warns(
        UserWarning, match="at step 58 log 'mlflow' cannot be written to, and training goes on"
    ):
        summary = train(settings, tmp_path / "run", At(50, lose))
    assert summary.steps == json.loads((logged / "summary.json").read_text())["steps"]
    found = without_speed(of_tensorboard(tmp_path / "run" / "tensorboard"))
    assert found == without_speed(of_tensorboard(logged / "tensorboard")), "in the other, all"


def test_bad_input_is_one_line(
    small_data: Path, logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for log, why in (
        ("wandb", "'wandb' is no log; there are tensorboard, mlflow"),
        (["mlflow="], "'mlflow=' is no log"),
        (["mlflow", "mlflow=sqlite:///x.db"], "mlflow is given twice"),
    ):
        with pytest.raises(ConfigError, match=why):
            RunConfig.parse({"data": "data", "log": log}, "test")
    assert RunConfig.parse({"data": "data", "log": "tensorboard"}, "test").log == ["tensorboard"]
    base = {"data": "data", "log": ["tensorboard"]}
    with pytest.raises(ConfigError, match="log: is of single runs"):
        CompareConfig.parse({"base": base, "dims": [4], "inner_dims": [8]}, "test")
    out = tmp_path / "run"
    with pytest.raises(RunError, match="tensorboard: holds the log of another run; name a folder"):
        train(config(small_data, f"tensorboard={logged / 'tensorboard'}"), out)
    with monkeypatch.context() as patch:
        patch.setitem(places._PACKAGES, "tensorboard", ("no_such_package",))
        with pytest.raises(ConfigError, match=r'needs no_such_package: pip install "mlet\[tensorb'):
            train(config(small_data, "tensorboard"), out)
    assert not out.exists()
    with pytest.raises(RunError, match=r"the store sqlite:.*x\.db cannot be used"):
        train(config(small_data, f"mlflow=sqlite:///{logged / 'config.yaml' / 'x.db'}"), out)
    secret = "mlflow=http://me:secret@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"the store http://127.0.0.1:9 cannot be used") as refused:
        train(config(small_data, secret), tmp_path / "other")
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
