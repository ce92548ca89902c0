"""``mlet train`` and ``mlet collapse``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlet.cli.console import TrainingBar, complain, say
from mlet.cli.settings import (
    Assignments,
    BatchSize,
    Dim,
    Epochs,
    Model,
    Optimizer,
    Preset,
    Rate,
    RunData,
    from_file,
    overrides,
    parse_inner_dim,
)
from mlet.data import PreparedDataset
from mlet.errors import ConfigError
from mlet.export import collapse_checkpoint
from mlet.nn.compression import Precision
from mlet.reporting.text import human_bytes
from mlet.settings import merge
from mlet.training import RunConfig, RunDirectory, Summary
from mlet.training import resume as resume_run
from mlet.training import train as train_run
from mlet.training.collapse import collapse_run
from mlet.training.grow import with_grown
from mlet.training.inner_dims import inner_dims_of, with_field_dims, with_inner_dims
from mlet.training.launch import launch, without_option
from mlet.training.presets import RECIPE, with_preset
from mlet.training.processes import Processes, ProcessLostError, joined


def train(
    data: Annotated[Path | None, typer.Argument(help="Prepared data set.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run instead.")] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Go on with this run's model, or a model file's, on DATA that extends its own.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    preset: Preset = RECIPE,
    model: Model = None,
    dim: Dim = None,
    inner_dim: Annotated[
        str | None,
        typer.Option(
            help="Inner dimension k; auto chooses for each field; 0 for ordinary tables (SLT).",
            show_default="auto",
        ),
    ] = None,
    optimizer: Optimizer = None,
    learning_rate: Rate = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of initial values and the order of rows.", min=0, show_default="0"),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=PLACE]",
            help="Metrics to tensorboard[=FOLDER] or mlflow[=TRACKING-URI], too. Repeatable.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            help="Train with so many processes on this machine, each with a part of every batch.",
            min=1,
            show_default="1",
        ),
    ] = None,
    set_: Assignments = None,
) -> None:
    """Train a click model on a prepared data set.

    Settings are put over one another: defaults, --preset, --config, options, --set. The run
    directory keeps the complete configuration, metrics.jsonl, checkpoints and model.safetensors
    (collapsed). Interrupted runs continue with --resume RUN, to the same numbers; with DATA
    before it, if the data set has moved. With --epochs N beside it, a run goes on to so many; a
    finished one only if it was trained with --set training.keep_state=true.

    With --from RUN a new run goes on with a finished one's model on new rows, prepared with
    --extend: settings are RUN's but for what is given here; its tables get rows for new categories,
    which begin as that of the unknown one, with noise (--set grow.noise=0.5 halves it). What
    its optimizers kept goes on if RUN was trained with --set training.keep_state=true.

    With --processes N, or started by torchrun on several machines, every process has a part of
    every batch: --batch-size stays that of all together, and so do the numbers, to rounding. Each
    has some rows alone of tables above 64 MiB (--set training.shard_tables_above=BYTES).

    Example: mlet train DATA --out RUN --dim 8 --inner-dim 64 --optimizer adagrad

    Example: mlet train NEW --from RUN --out RUN2 --epochs 1
    """
    if processes is not None and processes > 1:
        raise typer.Exit(launch(processes, without_option(sys.argv[1:], "--processes")))
    if resume is not None:
        given = (
            out,
            from_,
            config,
            model,
            dim,
            inner_dim,
            optimizer,
            learning_rate,
            batch_size,
            seed,
            log,
        )
        if preset != RECIPE or any(value is not None for value in (*given, set_)):
            raise ConfigError(
                "--resume RUN takes everything from the run but --epochs; leave the rest out"
            )
        _watch(resume, data=data, epochs=epochs)
        return
    if out is None:
        raise ConfigError("missing --out RUN (or --resume RUN)")
    values = merge(
        from_file(config, optimizer),
        overrides(
            model=model,
            optimizer=optimizer,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            assignments=set_,
            extra={
                "model": {"dim": dim, "inner_dim": parse_inner_dim(inner_dim)},
                "training": {"seed": seed},
                "log": log,
            },
        ),
    )
    if inner_dim is not None and parse_inner_dim(inner_dim) is None:
        values = merge(values, {"model": {"inner_dim": None}})
    if from_ is not None:
        values = merge(values, {"grow": {"run": str(from_)}})
    values = _with_grown(preset, values) if values.get("grow") else with_preset(preset, values)
    if data is not None:
        values["data"] = str(data)
    if "data" not in values:
        raise ConfigError("missing DATA, the prepared data set (or 'data' in --config)")
    for name in ("data", "start"):
        if values.get(name) is not None:
            values[name] = str(Path(values[name]).resolve())
    if values.get("grow"):
        values["grow"]["run"] = str(Path(values["grow"]["run"]).resolve())
    _watch(out, RunConfig.parse(values, "configuration"))


def _with_grown(preset: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings over those of what is gone on from."""
    values = with_grown(values, preset)
    if preset != RECIPE and Path(values["grow"]["run"]).is_dir():
        raise ConfigError("--from RUN takes its settings from the run; leave --preset out")
    return values


def _watch(
    path: Path,
    config: RunConfig | None = None,
    *,
    data: Path | None = None,
    epochs: int | None = None,
) -> None:
    with joined():
        if not Processes().lead:
            try:
                _train(path, config, None, data, epochs)
            except (KeyboardInterrupt, ProcessLostError):
                raise typer.Exit(1) from None  # the first process says what there is to say
            return
        try:
            with TrainingBar() as bar:
                if config is not None:
                    config = _telling_inner_dims(_telling_field_dims(config))
                summary = _train(path, config, bar, data, epochs)
        except KeyboardInterrupt:
            complain(f"stopped; continue with: mlet train --resume {path}")
            raise typer.Exit(130) from None
    _print_summary(summary, path)


def _train(
    path: Path,
    config: RunConfig | None,
    bar: TrainingBar | None,
    data: Path | None,
    epochs: int | None,
) -> Summary:
    if config is not None:
        return train_run(config, path, bar)
    return resume_run(path, bar, data=data, epochs=epochs)


def _telling_field_dims(config: RunConfig) -> RunConfig:
    """The settings with what ``dim_exponent`` comes to, which is said."""
    config = with_field_dims(config)
    if config.model.dim_exponent:
        dims = config.model.field_dims
        for d in sorted(set(dims.values()), reverse=True):
            say(f"d = {d}: {_some([name for name in dims if dims[name] == d])}")
    return config


def _telling_inner_dims(config: RunConfig) -> RunConfig:
    """The settings with what ``inner_dim: auto`` comes to, which is said."""
    if config.model.inner_dim != "auto":
        return config
    found = inner_dims_of(config.model, PreparedDataset(config.data))
    two_layer = {name: chosen.value for name, chosen in found.items() if chosen.value}
    for k in sorted(set(two_layer.values()), reverse=True):
        names = [name for name, value in two_layer.items() if value == k]
        say(f"two layers, k = {k}: {_some(names)}")
    ordinary = [f"{name} ({one.reason})" for name, one in found.items() if not one.value]
    if ordinary:
        say(f"ordinary tables: {_some(ordinary)}")
    return with_inner_dims(config, found)


def _some(names: list[str], most: int = 8) -> str:
    """Names with commas; of many the first ones."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _print_summary(summary: Summary, path: Path) -> None:
    task = RunDirectory(path).config().model.build_task()
    measured = ", ".join(f"{m.label} {summary.valid[m.name]:.4f}" for m in task.measures)
    why = (
        f"no better validation {task.headline.label}"
        if summary.stopped == "early"
        else "all epochs done"
    )
    say(
        f"best at step {summary.best_step:,}: valid {measured}  ({why}; {summary.steps:,} steps in "
        f"{summary.seconds:.1f} s, {summary.rows_per_second:,.0f} rows/s)",
    )
    say(
        f"parameters {human_bytes(summary.training_bytes)} in training, "
        f"{human_bytes(summary.model_bytes)} collapsed -> {RunDirectory(path).model_file}",
    )


def collapse(
    run: Annotated[Path, typer.Argument(help="Run directory, or any checkpoint file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .safetensors or .pt.")],
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of a run's tables: float16, or codes of 8 or 4 bits row by row. Default: float32."
        ),
    ] = None,
    data: RunData = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a model with ordinary tables (W := W2 W1).

    Of a run: safetensors with a table for each field; scores are checked to be the same. Of a
    checkpoint of any converted model: the plain model's state_dict, without building the model.
    """
    if run.is_file():
        if data is not None or precision is not None:
            raise ConfigError("--data and --precision are for runs, not for checkpoints")
        done = collapse_checkpoint(run, out, overwrite=overwrite)
        say(
            f"{done.tables} tables collapsed, {human_bytes(done.before)} -> "
            f"{human_bytes(done.after)} -> {out}",
        )
        if done.left_out:
            complain(f"warning: {', '.join(done.left_out)} left out: no tensors; a .pt keeps them")
        return
    report = collapse_run(run, out, precision=precision, data=data, overwrite=overwrite)
    say(
        f"embedding parameters {human_bytes(report.trained_bytes)} -> "
        f"{human_bytes(report.collapsed_bytes)}; largest difference between trained and collapsed "
        f"click probabilities on {report.rows:,} rows: {report.largest_difference:.1e} -> {out}",
    )
