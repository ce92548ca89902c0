"""Runs: repeatable, resumable to the bit, robust against kills, honest about trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mlet.data import PreparedDataset, prepare
from mlet.data.synthetic import SyntheticConfig, SyntheticSource
from mlet.errors import ConfigError, DataError, RunError, TrainingError
from mlet.export import load_collapsed
from mlet.models import DLRMConfig
from mlet.training import RunConfig, RunDirectory, loop, resume, train
from mlet.training.collapse import collapse_run
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.evaluate import evaluate
from mlet.training.load import load_for_evaluation, load_trained
from mlet.training.observer import SilentObserver
from mlet.training.predict import predict
from mlet.training.processes import Processes


def config(data: Path, optimizer: str = "adagrad", **training: object) -> RunConfig:
    settings = {"batch_size": 64, "epochs": 2, "threads": 1, "patience": None, **training}
    return RunConfig(
        data=data,
        model=DLRMConfig(dim=4, inner_dim=12, bottom_mlp=[8], top_mlp=[8]),
        optimizer=OptimizersConfig.same(optimizer),
        training=TrainingConfig(**settings),
    )


def metrics(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


class StopAt(SilentObserver):
    """Interrupts training at a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, loss: float, rows: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_same_seed_same_numbers_and_resumed_runs_equal_uninterrupted_ones(
    small_data: Path, tmp_path: Path, optimizer: str
) -> None:
    settings = config(small_data, optimizer)
    whole = train(settings, tmp_path / "whole")
    train(settings, tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "cut", StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "cut", StopAt(29))
    summary = resume(tmp_path / "cut")
    assert summary.best_step == whole.best_step
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_interrupt_within_a_step_leaves_a_checkpoint_between_steps(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes after the tables are updated and before the dense layers are."""
    settings = config(small_data)
    train(settings, tmp_path / "whole")
    steps = 0
    step = torch.optim.Adagrad.step

    def interrupted(optimizer: torch.optim.Adagrad, closure: None = None) -> None:
        nonlocal steps
        steps += 1
        if steps == 11:  # the dense layers' turn in step 11: the tables have had theirs
            os.kill(os.getpid(), signal.SIGINT)
        step(optimizer, closure)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adagrad, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "cut")
    assert signal.getsignal(signal.SIGINT) is handler
    assert RunDirectory(tmp_path / "cut").load_last()["progress"]["step"] == 11
    resume(tmp_path / "cut")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_other_seed_other_numbers(small_data: Path, tmp_path: Path) -> None:
    train(config(small_data, epochs=1), tmp_path / "a")
    train(config(small_data, epochs=1, seed=1), tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "b")


@pytest.mark.slow
def test_a_killed_run_is_usable_and_resumes_to_the_same_numbers(
    small_data: Path, tmp_path: Path, mlet_command: Path
) -> None:
    """SIGKILL at five moments, from start-up to the last epochs."""
    settings = config(small_data, epochs=15, batch_size=32, validate_every=20, checkpoint_every=7)
    train(settings, tmp_path / "whole")
    (tmp_path / "c.yaml").write_text(settings.to_yaml())
    run = tmp_path / "killed"
    command = [str(mlet_command), "train", "--config", "c.yaml", "--out", str(run)]
    kills = 0
    for wait in (0.3, 0.05, 0.6, 1.0, 0.2):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (run / "config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = (run / "metrics.jsonl").stat().st_mtime_ns if kills else 0
        while process.poll() is None and time.monotonic() < deadline:
            path = run / "metrics.jsonl"
            if path.exists() and path.stat().st_mtime_ns != seen:
                break
            time.sleep(0.005)
        time.sleep(wait)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        command = [str(mlet_command), "train", "--resume", str(run)]
        assert RunDirectory(run).config() == settings
        for line in (run / "metrics.jsonl").read_text().splitlines():
            json.loads(line)
        if not RunDirectory(run).finished:
            load_trained(RunDirectory(run))  # what there is can be evaluated
    assert kills >= 2
    resume(run)
    assert metrics(run) == metrics(tmp_path / "whole")
    files = [path / "model.safetensors" for path in (run, tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_anew(
    small_data: Path, tmp_path: Path
) -> None:
    settings = config(small_data, epochs=1)
    train(settings, tmp_path / "whole")
    RunDirectory(tmp_path / "run").create(settings)
    resume(tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_early_stopping_keeps_the_best_weights(small_data: Path, tmp_path: Path) -> None:
    settings = config(small_data, "adam", epochs=40, patience=2, validate_every=10)
    summary = train(settings, tmp_path / "run")
    records = metrics(tmp_path / "run")
    best = max(records, key=lambda record: record["valid_auc"])
    assert summary.stopped == "early"
    assert summary.steps < 40 * 29
    assert best["step"] == summary.best_step
    assert [record["step"] for record in records[records.index(best) :]] == [
        summary.best_step + 10 * later for later in range(3)
    ]
    data = PreparedDataset(small_data).split("valid")
    model, _, _ = load_collapsed(tmp_path / "run" / "model.safetensors")
    from sklearn.metrics import roc_auc_score

    labels = data.labels["label"]
    assert roc_auc_score(labels, predict(model, data)) == pytest.approx(summary.valid["auc"])


def test_summary_sizes(small_data: Path, tmp_path: Path) -> None:
    summary = train(config(small_data, epochs=1), tmp_path / "run")
    model, _, _ = load_collapsed(tmp_path / "run" / "model.safetensors")
    assert summary.model_bytes == sum(4 * p.numel() for p in model.parameters())
    trained, _ = load_trained(RunDirectory(tmp_path / "run"))
    assert summary.training_bytes == sum(4 * p.numel() for p in trained.parameters())


@pytest.mark.parametrize("table_dtype", ["bfloat16", "float16"])
def test_16_bit_tables_train_and_collapse(
    small_data: Path, tmp_path: Path, table_dtype: str
) -> None:
    settings = config(small_data, epochs=2)
    model = settings.model.model_copy(update={"table_dtype": table_dtype})
    settings = settings.model_copy(update={"model": model})
    whole = train(settings, tmp_path / "whole")
    exact = train(config(small_data, epochs=2), tmp_path / "exact")
    assert whole.training_bytes < exact.training_bytes
    assert whole.model_bytes == exact.model_bytes
    assert whole.valid["auc"] == pytest.approx(exact.valid["auc"], abs=0.03)
    collapsed, _, _ = load_collapsed(tmp_path / "whole" / "model.safetensors")
    assert {p.dtype for p in collapsed.parameters()} == {torch.float32}
    data = PreparedDataset(small_data).split("valid")
    from sklearn.metrics import roc_auc_score

    labels = data.labels["label"]
    assert roc_auc_score(labels, predict(collapsed, data)) == pytest.approx(whole.valid["auc"])


def test_collapsed_file_scores_as_the_trained_model(small_data: Path, tmp_path: Path) -> None:
    train(config(small_data), tmp_path / "run")
    report = collapse_run(tmp_path / "run", tmp_path / "m.safetensors")
    assert report.rows == PreparedDataset(small_data).schema.splits["valid"].rows
    assert report.largest_difference <= 1e-6
    assert report.trained_bytes > 2 * report.collapsed_bytes
    with pytest.raises(RunError, match="already exists"):
        collapse_run(tmp_path / "run", tmp_path / "m.safetensors")
    own, data = load_for_evaluation(tmp_path / "run", None)
    filed, _ = load_for_evaluation(tmp_path / "m.safetensors", small_data)
    a, b = (evaluate(model, data, samples=5) for model in (own, filed))
    assert [entry.rows for entry in a] == [entry.rows for entry in b]
    assert a[0].scores["auc"] == pytest.approx(b[0].scores["auc"], abs=1e-6)
    with pytest.raises(RunError, match="name its data set with --data"):
        load_for_evaluation(tmp_path / "m.safetensors", None)


def test_collapsed_files_that_are_damaged_or_something_else(
    small_data: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "m.safetensors"
    with pytest.raises(RunError, match=r"m\.safetensors: no such file"):
        load_collapsed(path)
    train(config(small_data, epochs=1), tmp_path / "run")
    good = tmp_path / "run" / "model.safetensors"
    path.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"m\.safetensors: damaged"):
        load_collapsed(path)
    content = bytearray(good.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="it is not what was written"):
        load_collapsed(path)
    tensors = load_file(good)
    save_file(tensors, path)
    with pytest.raises(RunError, match="not written by mlet collapse"):
        load_collapsed(path)
    with safe_open(good, framework="pt") as file:
        known = json.loads(file.metadata()["mlet"])
    del known["seal"]  # as mlet 0.1 wrote it
    metadata = {"mlet": json.dumps(known)}
    for lost, message in (
        ("embedding.C2", r"weight of field 'C2': expected \(\d+, 4\), got none"),
        ("top_mlp.0.bias", r"tensors missing \['top_mlp.0.bias'\]"),
    ):
        save_file({n: t for n, t in tensors.items() if n != lost}, path, metadata=metadata)
        with pytest.raises(RunError, match=message):
            load_collapsed(path)


def test_slices_are_the_rows_of_their_counts(small_data: Path, tmp_path: Path) -> None:
    train(config(small_data, epochs=1), tmp_path / "run")
    model, data = load_trained(RunDirectory(tmp_path / "run"))
    slices = evaluate(model, data, edges=(1, 4, 20), field="C1", samples=10)
    counts = data.rarest_counts("test", "C1")
    assert [entry.name for entry in slices] == ["all", "0", "1-3", "4-19", "20+"]
    members = [counts >= 0, counts < 1, (counts >= 1) & (counts < 4), (counts >= 4) & (counts < 20)]
    labels = np.asarray(data.split("test").labels["label"])
    for entry, rows in zip(slices, members, strict=False):
        assert (entry.rows, entry.clicks) == (rows.sum(), labels[rows].sum())
    assert sum(entry.rows for entry in slices[1:]) == slices[0].rows
    low, high = slices[0].intervals["auc"]
    assert low <= slices[0].scores["auc"] <= high
    with pytest.raises(ConfigError, match="increasing positive counts"):
        evaluate(model, data, edges=(5, 2))


class Poison(SilentObserver):
    """Puts a NaN somewhere after some steps."""

    def __init__(self, where: str) -> None:
        self.where, self.count = where, 0
        self.trainer: loop._Trainer | None = None

    def step(self, loss: float, rows: int) -> None:
        self.count += 1
        if self.count == 3:
            assert self.trainer is not None
            with torch.no_grad():
                if self.where == "table":
                    self.trainer.model.embedding.tables[0].rows_of("C2").fill_(float("inf"))
                else:
                    self.trainer.model.top_mlp[0].bias.fill_(float("nan"))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("table", "at step 4; it comes from the embedding vectors of field 'C2'; lower optimizer"),
        ("dense layers", "at step 4; it comes from the dense layers; lower optimizer"),
    ],
)
def test_a_loss_that_is_not_finite_names_step_and_place(
    small_data: Path, tmp_path: Path, where: str, message: str
) -> None:
    observer = Poison(where)
    settings = config(small_data)
    run = RunDirectory(tmp_path / "run")
    observer.trainer = loop._Trainer(settings, run, observer, Processes())
    observer.trainer.run.create(settings)
    with pytest.raises(TrainingError, match=message):
        observer.trainer.fit()
    with pytest.raises(TrainingError, match=message):
        resume(tmp_path / "run")


def test_a_dense_feature_that_is_not_finite_is_named(
    small_data: Path, tmp_path: Path, rewrite: Callable[[Path, str, np.ndarray], None]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    dense = np.load(data / "train" / "dense.npy")
    dense[:, 1] = np.nan
    rewrite(data, "train/dense.npy", dense)
    with pytest.raises(DataError, match="at step 1; it comes from the data: dense feature 'I2'"):
        train(config(data), tmp_path / "run")


def test_directories_that_are_in_the_way(small_data: Path, tmp_path: Path) -> None:
    settings = config(small_data, epochs=1)
    run = tmp_path / "run"
    RunDirectory(run).create(settings)
    with pytest.raises(RunError, match="holds a unfinished run; continue it with --resume"):
        train(settings, run)
    with pytest.raises(RunError, match="the run is unfinished"):
        RunDirectory(run).summary()
    with pytest.raises(RunError, match=r"best\.pt: missing; the run has no validation yet"):
        load_trained(RunDirectory(run))
    resume(run)
    with pytest.raises(RunError, match="holds a finished run; choose another directory"):
        train(settings, run)
    assert resume(run) == RunDirectory(run).summary(), "a finished run is left as it is"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="exists and is no run"):
        train(settings, tmp_path / "mine")
    with pytest.raises(RunError, match="not a run"):
        resume(tmp_path / "mine")


def test_resuming_on_other_data_or_a_damaged_checkpoint_is_refused(
    small_data: Path, small_config: SyntheticConfig, tmp_path: Path
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    with pytest.raises(KeyboardInterrupt):
        train(config(data), tmp_path / "run", StopAt(20))
    shutil.rmtree(data)
    prepare(SyntheticSource(small_config.model_copy(update={"seed": 1})), data)
    with pytest.raises(RunError, match="is not the data set of"):
        resume(tmp_path / "run")
    shutil.rmtree(data)
    shutil.copytree(small_data, data)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1_000])
    with pytest.raises(RunError, match=r"last\.pt: damaged"):
        resume(tmp_path / "run")


def test_unknown_device(small_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.device='abacus'"):
        train(config(small_data, device="abacus"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
