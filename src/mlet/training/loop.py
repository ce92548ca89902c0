"""The training loop: steps, validations, early stopping, checkpoints, an end."""

from __future__ import annotations

import math
import platform
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from mlet.data import Batch, BatchLoader, PreparedDataset
from mlet.errors import ConfigError, DataError, RunError, TrainingError
from mlet.export import save_collapsed
from mlet.interrupts import DeferredInterrupt
from mlet.models import CTRModel
from mlet.reading import first_line
from mlet.training.config import RunConfig
from mlet.training.continuation import with_epochs
from mlet.training.divergence import explained, lower_rates
from mlet.training.followed_run import run_directory
from mlet.training.grow import check_growth
from mlet.training.inner_dims import with_inner_dims
from mlet.training.joined_scores import scored
from mlet.training.logs import RunLogs, check_logs, with_log_places
from mlet.training.memory import tables_of
from mlet.training.observer import Observer, SilentObserver
from mlet.training.optimizers import Optimizers
from mlet.training.processes import Processes
from mlet.training.run import Progress, RunDirectory, Summary
from mlet.training.run_tables import build_tables, tables_of_run
from mlet.training.spectra import SpectraRecorder
from mlet.training.start import begin
from mlet.training.unknown import UnknownRows

#: Where ``training.validate_every`` is not set.
_VALIDATIONS_PER_EPOCH = 4


def train(config: RunConfig, out: Path, observer: Observer | None = None) -> Summary:
    """Train a model in a new run directory.

    Raises:
        ConfigError, DataError, RunError: settings, data or directory cannot be used.
        DataError: also if a dense feature is NaN or infinite.
        TrainingError: training diverged: the loss is NaN or infinite.
    """
    config = with_log_places(with_inner_dims(config))
    processes = Processes()
    if config.grow is not None:  # first: a model of other data's fields cannot even be made
        check_growth(config, PreparedDataset(config.data))
    run = run_directory(out, processes)
    with tables_of(config, out):
        trainer = _Trainer(config, run, observer or SilentObserver(), processes)
        with processes.lead_first():
            run.create(config)
        return trainer.fit()


def resume(
    out: Path,
    observer: Observer | None = None,
    *,
    data: Path | None = None,
    epochs: int | None = None,
) -> Summary:
    """Continue a run from its last checkpoint, to the numbers of an uninterrupted one.

    A finished run is left as it is, unless more epochs are asked for. Raises as `train`.

    Args:
        out: the run.
        observer: told of progress.
        data: where its data set lies now; by default where it lay when the run was begun.
        epochs: train to this many; a finished run goes on if it kept its state
            (``training.keep_state``) and did not stop early.
    """
    processes = Processes()
    run = run_directory(out, processes)
    config = run.config()
    if data is not None:
        config = config.model_copy(update={"data": data})
    elif not config.data.exists():
        raise RunError(
            f"{out}: its data set {config.data} is not there any more; if it has moved, name it: "
            f"mlet train DATA --resume {out}"
        )
    if run.finished:
        run.check_begun(config, all_of_it=True)
        run.check_data(PreparedDataset(config.data), same_rows=True)
        if epochs is None:
            return run.summary()
    if epochs is not None:
        with processes.lead_first():
            config = with_epochs(run, config, epochs)
    if run.failure is not None:
        raise TrainingError(run.failure)
    check_logs(config)
    with tables_of(config, out):
        trainer = _Trainer(config, run, observer or SilentObserver(), processes)
        trainer.restore()
        return trainer.fit()


class _Trainer:
    """One run in memory."""

    def __init__(
        self, config: RunConfig, run: RunDirectory, observer: Observer, processes: Processes
    ) -> None:
        self.config, self.run, self.observer, self.processes = config, run, observer, processes
        settings = config.training
        try:
            self.device = torch.device(settings.device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"training.device={settings.device!r}: {reason}") from None
        if processes.size > 1 and self.device.type != "cpu":
            raise ConfigError(
                f"training.device={settings.device!r}: several processes train on CPUs; train "
                f"with one process, or leave it out"
            )
        if settings.tables_in == "file" and self.device.type != "cpu":
            raise ConfigError(
                f"training.device={settings.device!r}: tables in a file are trained on the CPU; "
                f"leave out this setting, or training.tables_in"
            )
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        # torch's own sparse optimizers build tensors from indices that are valid by construction.
        torch.sparse.check_sparse_tensor_invariants.disable()
        torch.manual_seed(settings.seed)
        self.data = PreparedDataset(config.data)
        self.loader = BatchLoader(self.data.split("train"), settings.batch_size, settings.seed)
        valid = self.data.split("valid")
        self.validation = valid.rows(processes.part(len(valid)))
        self.model: CTRModel = build_tables(config, self.data.schema, processes).to(self.device)
        self.task = self.model.task
        self.unknown = UnknownRows(self.model, self.data, processes)
        self.optimizers = Optimizers(config.optimizer, self.model, settings.batch_size)
        self.tables = tables_of_run(config, run, self.model, self.optimizers, processes)
        if self.task.label not in self.validation.labels:
            raise DataError(
                f"{self.data.root}: no labels {self.task.label!r}, which task "
                f"{config.model.task!r} needs; there are: {', '.join(self.validation.labels)}"
            )
        self.task.check_weights(self.data.schema.weighted)
        self.progress = Progress()
        self.spectra = SpectraRecorder(self.data)

    def restore(self) -> None:
        """Take up the last checkpoint, if there is one."""
        self.run.check_data(self.data, same_rows=True)
        state = self.run.load_last(mapped=self.tables.mapped)
        if state is None:
            return
        try:
            self.tables.load(state)
            torch.set_rng_state(state["random"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(
                f"{self.run.root}: its last checkpoint does not fit its configuration "
                f"({first_line(error)}); train the run again"
            ) from None
        self.progress = self.run.progress(state)
        steps = self.config.training.epochs * len(self.loader)
        if self.progress.done == "epochs" and self.progress.step < steps:
            self.progress.done = None  # it was asked for fewer
        now, then = self._arithmetic(), state.get("arithmetic")
        if not isinstance(then, dict):  # of mlet 0.1
            return
        others = [
            f"{name} {then.get(name)} then, {value} now"
            for name, value in now.items()
            if then.get(name) != value
        ]
        if others:
            warnings.warn(
                f"{self.run.root}: goes on with {', '.join(others)}: sums are rounded in another "
                f"way, so that it ends in the numbers of an uninterrupted run to rounding, not to "
                f"the bit",
                UserWarning,
                stacklevel=3,
            )

    def fit(self) -> Summary:
        """Train to the end and write the collapsed model and the summary."""
        config = self.config if self.processes.lead else self.config.model_copy(update={"log": []})
        with RunLogs(config, self.run.root, self.progress.step) as self.logs:
            return self._fit()

    def _fit(self) -> Summary:
        settings, progress = self.config.training, self.progress
        # That of its beginning stays: its checkpoints are marked with it.
        if not self.run.schema_file.exists():
            self.run.write_schema(self.data.schema)
        if not self.run.is_begun:
            self.run.write_begun(self.config)
        self.observer.start(self.task, settings.epochs * len(self.loader), progress.step)
        if progress.step == 0:
            with self.processes.lead_first(), self.tables.begun():
                begin(self.config, self.model, self.optimizers, self.data, self.run)
        if settings.record_spectra and not progress.spectra:
            self._record_spectra()
        try:
            # Interrupted halfway, a step would leave some tables updated and others not, and the
            # checkpoint made then would not resume to the numbers of an uninterrupted run.
            with DeferredInterrupt() as interrupt:
                if 0 < settings.epochs * len(self.loader) <= progress.step:
                    self._end()  # of a run that is continued with fewer epochs
                while progress.done is None:
                    self._epoch(interrupt)
        except KeyboardInterrupt:
            self._save_checkpoint()
            raise
        except TrainingError as error:
            self.run.write_failure(str(error))
            raise
        return self._finish()

    def _end(self) -> None:
        """Come to the end at a step beyond the last one that is asked for."""
        progress = self.progress
        if progress.records and progress.records[-1]["step"] == progress.step:
            progress.done = progress.done or "epochs"
        else:
            self._validate(last=True)

    def _epoch(self, interrupt: DeferredInterrupt) -> None:
        """Train from the current position to the end of its epoch, or to an early stop."""
        settings, progress = self.config.training, self.progress
        every = settings.validate_every or -(-len(self.loader) // _VALIDATIONS_PER_EPOCH)
        self.model.train()
        began = time.perf_counter()
        for batch in self.loader.epoch(*divmod(progress.step, len(self.loader))):
            loss = self._step(batch.to(self.device))
            progress.step += 1
            progress.loss_sum += loss
            progress.loss_steps += 1
            self.logs.step(loss, len(batch.dense))
            self.observer.step(loss, len(batch.dense))
            last = progress.step == settings.epochs * len(self.loader)
            checkpoint = settings.checkpoint_every
            if progress.step % every == 0 or last:
                progress.seconds += time.perf_counter() - began
                self._validate(last)
                if progress.done:
                    return
                began = time.perf_counter()
            elif checkpoint and progress.step % checkpoint == 0:
                progress.seconds += time.perf_counter() - began
                self._save_checkpoint()
                began = time.perf_counter()
            if self.processes.any(interrupt.asked):
                raise KeyboardInterrupt
        progress.seconds += time.perf_counter() - began

    def _step(self, batch: Batch) -> float:
        own, loss = self.processes.own(batch), None
        self.tables.fetch(own if len(own.dense) else None)
        if rows := len(own.dense):
            labels = own.labels[self.task.label]
            loss = self.task.batch_loss(self.model(own), labels, own.weights)
            if rows < len(batch.dense):
                loss = loss * (rows / len(batch.dense))
        value = self.processes.sum(0.0 if loss is None else loss.item())
        if not math.isfinite(value):
            self.tables.fetch(batch)
            place = f"{self.run.root}: the loss is {value} at step {self.progress.step + 1}"
            raise explained(place, batch, self.data.schema, self.model, self.config.optimizer)
        self.optimizers.zero_grad()
        if loss is not None:
            loss.backward()
        self.tables.add_gradients()
        self.optimizers.step()
        return value

    def _validate(self, last: bool) -> None:
        """Score the validation split; keep the weights if they are the best; decide to stop."""
        settings, progress = self.config.training, self.progress
        self.logs.flush()
        self.unknown.fill()
        rows = -(-len(self.data.split("valid")) // self.processes.size)
        predictions = self.tables.predict(self.validation, rows)
        if self.processes.any(not np.isfinite(predictions).all()):
            raise TrainingError(
                f"{self.run.root}: predictions for the validation split are NaN or infinite after "
                f"step {progress.step}; {lower_rates(self.config.optimizer)}"
            )
        labels = self.validation.labels[self.task.label]
        scores = scored(self.task, labels, predictions, self.validation.weights, self.processes)
        record = {
            "step": progress.step,
            "epoch": progress.step / len(self.loader),
            "train_loss": progress.loss_sum / max(progress.loss_steps, 1),
            **{f"valid_{name}": value for name, value in scores.items()},
            "seconds": progress.seconds,
        }
        progress.records.append(record)
        progress.loss_sum, progress.loss_steps = 0.0, 0
        quality = self.task.headline.quality(scores[self.task.headline.name])
        if quality > progress.best:
            progress.best, progress.best_step, progress.stale = quality, progress.step, 0
            self.run.save_best({"model": self.tables.weights(), "step": progress.step})
        else:
            progress.stale += 1
            if settings.patience is not None and progress.stale >= settings.patience:
                progress.done = "early"
        if last and progress.done is None:
            progress.done = "epochs"
        self.run.write_metrics(progress.records)
        self.logs.validation(scores)
        if settings.record_spectra and (progress.done or self.spectra.affordable(progress)):
            self._record_spectra()
        self._save_checkpoint()
        self.observer.validation(record)

    def _record_spectra(self) -> None:
        self.progress.spectra.append(self.spectra.record(self.model, self.progress))
        self.run.write_spectra(self.progress.spectra)

    def _save_checkpoint(self) -> None:
        self.logs.flush()  # before it: steps that are made again are logged again
        self.run.save_last(
            {
                "model": self.tables.weights(),
                "optimizers": self.tables.states(),
                "random": torch.get_rng_state(),
                "progress": asdict(self.progress),
                "arithmetic": self._arithmetic(),
            }
        )

    def _arithmetic(self) -> dict[str, str]:
        """What decides how sums are rounded: the same gives the same numbers to the bit."""
        cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        cuda = self.device.type == "cuda"
        return {
            "torch": str(torch.__version__),
            "device": torch.cuda.get_device_name(self.device) if cuda else cpu,
            "threads": str(torch.get_num_threads()),
        }

    def _finish(self) -> Summary:
        with self.processes.lead_first():
            return self._write_end() if self.processes.lead else self.run.summary()

    def _write_end(self) -> Summary:
        progress = self.progress
        model = self.tables.best(self.data.schema)
        model_bytes = save_collapsed(
            model,
            self.config.model,
            self.data.schema,
            self.run.model_file,
            vocabularies=self.data.vocabularies,
        )
        best = next(r for r in progress.records if r["step"] == progress.best_step)
        rows = progress.step * len(self.loader.columns) / len(self.loader)
        summary = Summary(
            steps=progress.step,
            epochs=math.ceil(progress.step / len(self.loader)),
            stopped=str(progress.done),
            best_step=progress.best_step,
            valid={
                name.removeprefix("valid_"): value
                for name, value in best.items()
                if name.startswith("valid_")
            },
            seconds=progress.seconds,
            rows_per_second=rows / max(progress.seconds, 1e-9),
            training_bytes=sum(p.nbytes for p in model.parameters()),
            model_bytes=model_bytes,
        )
        self.logs.end(self.run.model_file, self.data, {"step": progress.best_step, **summary.valid})
        self.run.write_begun(self.config)  # with what it was continued with
        self.run.write_summary(summary)
        if not self.config.training.keep_state:
            self.run.drop_state()
        return summary
