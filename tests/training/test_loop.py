"""What a run does at which step: validations, checkpoints, clocks, decay, chance."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mlet.data import BatchLoader, PreparedDataset, prepare
from mlet.data.loader import Batch
from mlet.data.readers import TableSchema, TableSource
from mlet.errors import RunError, TrainingError
from mlet.export import load_collapsed
from mlet.models import DLRMConfig, build_model
from mlet.training import RunConfig, RunDirectory, loop, resume, run_tables, train
from mlet.training.collapse import collapse_run
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.evaluate import evaluate
from mlet.training.load import load_trained
from mlet.training.observer import SilentObserver
from mlet.training.optimizers import Optimizers
from mlet.training.predict import predict, served_scores

#: Steps of an epoch: 1 800 training rows in batches of 64.
EPOCH = 29


def config(data: Path, rate: float | None = None, **training: object) -> RunConfig:
    settings = {"batch_size": 64, "epochs": 2, "threads": 1, "patience": None, **training}
    return RunConfig(
        data=data,
        model=DLRMConfig(dim=4, inner_dim=12, bottom_mlp=[8], top_mlp=[8]),
        optimizer=OptimizersConfig.same("adagrad", rate),
        training=TrainingConfig(**settings),
    )


class Watch(SilentObserver):
    """Notes the losses and the records, and draws a random number at every step."""

    def __init__(self, fail_at: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.fail_at, self.error = fail_at, error
        self.losses: list[float] = []
        self.drawn: list[float] = []
        self.records: list[dict[str, float]] = []

    def step(self, loss: float, rows: int) -> None:
        self.losses.append(loss)
        self.drawn.append(torch.rand(()).item())
        if len(self.losses) == self.fail_at:
            raise self.error

    def validation(self, record: dict[str, float]) -> None:
        self.records.append(record)


def test_a_record_says_where_it_was_made_and_the_loss_since_the_one_before(
    small_data: Path, tmp_path: Path
) -> None:
    seen = Watch()
    summary = train(config(small_data, validate_every=11), tmp_path / "run", seen)
    steps = [11, 22, 33, 44, 55, 58]
    assert [record["step"] for record in seen.records] == steps
    assert [record["epoch"] for record in seen.records] == [step / EPOCH for step in steps]
    for low, record in zip([0, *steps], seen.records, strict=False):
        since = seen.losses[low : int(record["step"])]
        assert record["train_loss"] == pytest.approx(np.mean(since))
    assert (summary.steps, summary.epochs, summary.stopped) == (58, 2, "epochs")


def test_an_epoch_has_four_validations_by_default(small_data: Path, tmp_path: Path) -> None:
    seen = Watch()
    train(config(small_data, epochs=1), tmp_path / "run", seen)
    assert [record["step"] for record in seen.records] == [8, 16, 24, 29]


def test_what_does_not_improve_is_stale_and_its_epoch_counts(
    small_data: Path, tmp_path: Path
) -> None:
    standing = config(small_data, rate=1e-30, patience=2)
    summary = train(standing, tmp_path / "run")
    assert (summary.steps, summary.best_step) == (24, 8)
    assert (summary.epochs, summary.stopped) == (1, "early")


def test_patience_starts_anew_at_a_better_validation(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aucs = iter([0.5, 0.4, 0.6, 0.5, 0.55, 0.7, 0.7, 0.7])
    validation = PreparedDataset(small_data).split("valid").labels["label"]

    def predictions(*_: object, **__: object) -> np.ndarray:
        """With the next AUC, nearly: that share of the clicks lie above all other rows."""
        clicks = np.flatnonzero(validation)
        result = np.full(len(validation), 0.5)
        share = 2 * next(aucs) - 1
        result[clicks[: round(abs(share) * len(clicks))]] = 0.9 if share > 0 else 0.1
        return result

    monkeypatch.setattr(run_tables, "predict", predictions)
    summary = train(config(small_data, patience=2), tmp_path / "run")
    assert (summary.steps, summary.best_step) == (40, 24)


def test_the_clock_runs_while_training_alone(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    class Clock(Watch):
        def step(self, loss: float, rows: int) -> None:
            nonlocal now
            now += 1

    def slow(*args: object, **kwargs: object) -> object:
        nonlocal now
        now += 1000
        return predict(*args, **kwargs)

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    monkeypatch.setattr(run_tables, "predict", slow)
    summary = train(config(small_data), tmp_path / "run", Clock())
    assert summary.seconds == 58
    assert summary.rows_per_second == pytest.approx(1800 / EPOCH)


def test_checkpoints_are_made_as_often_as_asked(small_data: Path, tmp_path: Path) -> None:
    asked = config(small_data, checkpoint_every=3, validate_every=20)
    with pytest.raises(RuntimeError):
        train(asked, tmp_path / "run", Watch(8, RuntimeError))
    state = RunDirectory(tmp_path / "run").load_last()
    assert state is not None
    assert state["progress"]["step"] == 6


def test_chance_goes_on_where_it_was(small_data: Path, tmp_path: Path) -> None:
    whole, first, rest = Watch(), Watch(10), Watch()
    train(config(small_data, epochs=1), tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        train(config(small_data, epochs=1), tmp_path / "cut", first)
    resume(tmp_path / "cut", rest)
    assert [*first.drawn, *rest.drawn] == whole.drawn


def test_the_seed_orders_the_rows(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: dict[int, list[list[float]]] = {}

    class Recorded(BatchLoader):
        def epoch(self, epoch: int = 0, start: int = 0) -> object:
            for batch in super().epoch(epoch, start):
                assert isinstance(batch, Batch)
                orders[len(orders) - 1].append(batch.dense.flatten().tolist())
                yield batch

    monkeypatch.setattr(loop, "BatchLoader", Recorded)
    for place, seed in enumerate((0, 0, 1)):
        orders[place] = []
        train(config(small_data, epochs=1, seed=seed), tmp_path / str(place))
    assert orders[0] == orders[1] != orders[2]


def test_resumed_with_another_arithmetic_it_says_what_it_promises(
    small_data: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    try:
        train(config(small_data), tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            train(config(small_data), tmp_path / "run", Watch(fail_at=EPOCH))
        shutil.copytree(tmp_path / "run", tmp_path / "same")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resume(tmp_path / "same")
        file = tmp_path / "run" / "config.yaml"
        file.write_text(file.read_text().replace("threads: 1", "threads: 2"))
        with pytest.warns(UserWarning, match=r"run: goes on with threads 1 then, 2 now.*rounding"):
            resume(tmp_path / "run")
    finally:
        torch.set_num_threads(before)
    whole, same, other = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "same", "run")
    )
    for name, expected in whole.items():
        assert torch.equal(same[name], expected)
        torch.testing.assert_close(other[name], expected, rtol=1e-4, atol=1e-6)


def test_threads_are_those_asked_for(small_data: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            train(config(small_data, epochs=1, threads=threads), tmp_path / str(threads))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam"])
def test_weight_decay_moves_what_has_no_gradient(small_data: Path, name: str) -> None:
    data = PreparedDataset(small_data)
    batch = next(iter(BatchLoader(data.split("train"), 64).epoch()))
    for decay in (0.0, 0.1):
        both = OptimizersConfig.parse(
            {part: {"name": "adagrad" if part == "dense" and name == "rowwise_adagrad" else name,
                    "learning_rate": 0.1, "weight_decay": decay} for part in ("tables", "dense")},
            "test",
        )  # fmt: skip
        torch.manual_seed(0)
        model = build_model(
            DLRMConfig(dim=4, inner_dim=12, bottom_mlp=[8], top_mlp=[8]), data.schema
        )
        for parameter in model.parameters():
            parameter.data.add_(0.01)  # biases begin at zero
        before = [p.detach().clone() for p in model.parameters()]
        optimizers = Optimizers(both, model, 64)
        (0 * model(batch).sum()).backward()
        optimizers.step()
        moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
        assert moved == [decay > 0] * len(moved)


def test_predictions_leave_the_mode_and_stop_where_asked(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    model = build_model(DLRMConfig(dim=4, bottom_mlp=[8], top_mlp=[8]), data.schema)
    for training in (True, False):
        model.train(training)
        assert len(predict(model, data.split("valid"), max_rows=10)) == 10
        assert model.training is training
    assert len(predict(model, data.split("valid"), max_rows=10**6)) == 450


def test_evaluation_is_of_the_split_and_the_resamples_asked_for(
    small_data: Path, tmp_path: Path
) -> None:
    train(config(small_data, epochs=1), tmp_path / "run")
    model, data = load_trained(RunDirectory(tmp_path / "run"))
    assert not model.training
    for split, rows in (("valid", 450), ("test", 750)):
        everything = evaluate(model, data, split=split, samples=1)[0]
        columns = data.split(split)
        expected = model.task.score(columns.labels["label"], served_scores(model, columns))
        assert (everything.rows, everything.scores) == (rows, expected)
        assert everything.intervals["auc"].low == everything.intervals["auc"].high


def test_collapse_reports_the_largest_difference_and_overwrites_when_asked(
    small_data: Path, tmp_path: Path
) -> None:
    train(config(small_data, epochs=1, rate=0.2), tmp_path / "run")
    out = tmp_path / "model.safetensors"
    report = collapse_run(tmp_path / "run", out, precision="int4")
    trained, data = load_trained(RunDirectory(tmp_path / "run"))
    rows = data.split("valid")
    collapsed, _, _ = load_collapsed(out)
    assert not collapsed.training
    differences = np.abs(predict(trained, rows) - predict(collapsed, rows))
    assert report.largest_difference == differences.max() > 2 * differences.mean()
    with pytest.raises(RunError, match="already exists"):
        collapse_run(tmp_path / "run", out)
    collapse_run(tmp_path / "run", out, overwrite=True)
    assert predict(load_collapsed(out)[0], rows) == pytest.approx(predict(trained, rows), abs=1e-6)


def test_a_run_of_0_1_is_served_in_the_precision_it_says(small_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(small_data, epochs=1), run)
    collapse_run(run, tmp_path / "asked", precision="int8")
    settings = RunDirectory(run).config_file
    text = settings.read_text()
    settings.write_text(text.replace("  name: dlrm\n", "  name: dlrm\n  quantize: int8\n"))
    assert settings.read_text() != text
    collapse_run(run, tmp_path / "said")
    assert (tmp_path / "said").read_bytes() == (tmp_path / "asked").read_bytes()


def edited(run: Path, out: Path, *changes: tuple[str, str]) -> Path:
    """A copy of a run whose configuration somebody has edited."""
    shutil.copytree(run, out)
    text = RunDirectory(out).config_file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    RunDirectory(out).config_file.write_text(text)
    return out


def test_an_edited_configuration_is_noticed_when_it_goes_on(
    small_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(small_data, epochs=4), run, Watch(70))
    for place, change in enumerate(
        [
            ("learning_rate: 0.02", "learning_rate: 0.2"),
            ("batch_size: 64", "batch_size: 100"),
            ("  dim: 4", "  dim: 8"),
            ("name: adagrad", "name: adam"),
            ("inner_dim: 12", "inner_dim: null"),
            ("seed: 0", "seed: 1"),
            ("validate_every: null", "validate_every: 3"),
        ]
    ):
        key = change[0].partition(":")[0].strip()
        with pytest.raises(RunError, match=rf"{key} \(.* then, .* now\) has changed"):
            resume(edited(run, tmp_path / str(place), change))
    shorter = resume(edited(run, tmp_path / "shorter", ("epochs: 4", "epochs: 2")))
    assert (shorter.steps, shorter.stopped) == (70, "epochs")
    longer = edited(
        run, tmp_path / "longer", ("epochs: 4", "epochs: 3"), ("patience: null", "patience: 9")
    )
    assert resume(longer).steps == 3 * EPOCH


def test_a_run_goes_on_with_its_data_elsewhere(small_data: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(small_data, data)
    train(config(small_data, epochs=1), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config(data, epochs=1), run, Watch(20))
    data.rename(tmp_path / "moved")
    with pytest.raises(RunError, match=r"if it has moved, name it: mlet train DATA --resume"):
        resume(run)
    with pytest.raises(RunError, match="say where to with --data"):
        load_trained(RunDirectory(run))
    resume(run, data=tmp_path / "moved")
    files = [RunDirectory(tmp_path / name).model_file for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_divergence_that_shows_in_validation_ends_the_run(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(*args: object, **kwargs: object) -> np.ndarray:
        found = predict(*args, **kwargs)
        found[-1] = np.nan
        return found

    monkeypatch.setattr(run_tables, "predict", diverged)
    with pytest.raises(TrainingError, match=r"validation split are NaN or infinite after step 8"):
        train(config(small_data), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"lower optimizer\.tables\.learning_rate"):
        resume(tmp_path / "run")


def test_what_another_version_wrote_says_so(small_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(small_data, epochs=1), run, Watch(20))
    last = run / "checkpoints" / "last.pt"
    state = torch.load(last)
    state["progress"]["added_later"] = 1
    torch.save(state, last)
    with pytest.raises(RunError, match=r"another version of mlet than .*added_later"):
        resume(run)
    del state["progress"]["added_later"]
    torch.save(state, last)
    resume(run)
    summary = RunDirectory(run).summary_file
    values = json.loads(summary.read_text())
    del values["seal"]
    for other in ({**values, "added_later": 1}, {k: values[k] for k in values if k != "steps"}):
        summary.write_text(json.dumps(other))
        with pytest.raises(RunError, match="another version of mlet than"):
            RunDirectory(run).summary()
    summary.write_text(json.dumps({**values, "steps": 30, "seal": 1}))
    with pytest.raises(RunError, match="it is not what was written"):
        RunDirectory(run).summary()


def test_a_checkpoint_of_other_tensors_is_refused(small_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(small_data, epochs=1), run, Watch(20))
    last = run / "checkpoints" / "last.pt"
    for part in ("embeddings", "dense"):
        state = torch.load(last)
        good = state["optimizers"][part]["state"][0]["sum"]
        state["optimizers"][part]["state"][0]["sum"] = torch.zeros(2, 1)
        torch.save(state, tmp_path / "crafted.pt")
        shutil.copytree(run, tmp_path / part)
        shutil.copy(tmp_path / "crafted.pt", tmp_path / part / "checkpoints" / "last.pt")
        with pytest.raises(RunError, match=r"does not fit its configuration .*\(2, 1\)"):
            resume(tmp_path / part)
        assert good.shape != (2, 1)


def test_a_folder_of_a_run_that_never_began_is_none(small_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.yaml.abcdefgh.tmp").write_text("")
    with pytest.raises(RunError, match="not a run"):
        resume(run)
    train(config(small_data, epochs=1), run)


def test_the_model_of_a_run_is_no_torch_file(small_data: Path, tmp_path: Path) -> None:
    train(config(small_data, epochs=1), tmp_path / "run")
    with pytest.raises(RunError, match=r"x\.pt: the model of a run is written as safetensors"):
        collapse_run(tmp_path / "run", tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_fields_whose_names_begin_alike_are_told_apart(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "clicks.csv"
    names = ["url", "url/path", "url/codes", "url/codes/scale"]
    rows = [[row * 7919 >> 3 & 1, *(row % size for size in (9, 7, 5, 4))] for row in range(600)]
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join([",".join(["click", *names]), *lines]))
    schema = TableSchema.parse({"label": "click", "categorical": names}, "test")
    prepare(TableSource([path], schema), tmp_path / "data")
    train(config(tmp_path / "data", epochs=1), tmp_path / "run")
    out = tmp_path / "model.safetensors"
    collapse_run(tmp_path / "run", out, precision=precision)
    trained, data = load_trained(RunDirectory(tmp_path / "run"))
    expected = predict(trained.collapse(precision), data.split("test"))
    assert predict(load_collapsed(out)[0], data.split("test")) == pytest.approx(expected)


def test_an_edited_configuration_of_a_finished_run_is_noticed_by_everyone(
    small_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(config(small_data, epochs=1), run)
    assert resume(edited(run, tmp_path / "same")).steps == EPOCH
    for place, change in enumerate(
        [
            ("pooling: mean", "pooling: sum"),
            ("seed: 0", "seed: 5"),
            ("interaction: dot", "interaction: cat"),
        ]
    ):
        other = edited(run, tmp_path / str(place), change)
        message = rf"{change[0].partition(':')[0]} \(.* then, .* now\) has changed"
        for use in (
            resume,
            lambda path: load_trained(RunDirectory(path)),
            lambda path: collapse_run(path, tmp_path / "out.safetensors"),
        ):
            with pytest.raises(RunError, match=message):
                use(other)
    for name, value in (("epochs: 1", "epochs: 4"), ("device: cpu", "device: nonsense")):
        other = edited(run, tmp_path / name[:5], (name, value))
        with pytest.raises(RunError, match=r"has changed .*the run is finished, and stays as it"):
            resume(other)
        load_trained(RunDirectory(other))
