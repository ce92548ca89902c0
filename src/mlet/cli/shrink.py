"""``mlet shrink``: the smallest served model that is about as good as a wide one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlet.cli.console import complain, counting, say, show_table
from mlet.cli.settings import Assignments, Optimizer, from_file, overrides, parse_bytes
from mlet.errors import ConfigError
from mlet.export import load_collapsed_model, to_onnx
from mlet.models import MODELS
from mlet.reporting.text import human_bytes
from mlet.settings import merge
from mlet.studies.shrink.report import columns, rows, sentences, write_shrink_report
from mlet.studies.shrink.search import shrink as run_search
from mlet.studies.shrink.study import ShrinkStudy
from mlet.studies.study import one_thread
from mlet.training import RunConfig
from mlet.training.presets import recipe

#: Where neither an aim is given.
_TOLERANCE = 0.0005


def shrink(
    data: Annotated[Path, typer.Argument(help="Prepared data set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for runs, model, report.")],
    model: Annotated[str | None, typer.Option(help=f"One of: {', '.join(MODELS)}.")] = None,
    reference_dim: Annotated[
        int, typer.Option(help="d of the single-layer float32 reference; none wider.", min=1)
    ] = 32,
    tolerance: Annotated[
        float | None,
        typer.Option(help=f"How far AUC may be below the reference's. Default: {_TOLERANCE}."),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(help="In the place of a tolerance: the best tables of so many, as 8MiB."),
    ] = None,
    trials: Annotated[
        int, typer.Option(help="Of the reference, and of each of the two searches.", min=1)
    ] = 24,
    seeds: Annotated[int, typer.Option(help="Fresh seeds that confirm what is chosen.", min=1)] = 3,
    optimizer: Optimizer = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step.", min=1)] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of run settings.")] = None,
    set_: Assignments = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of the database of trials, for several machines that share OUT. Default: a "
            "SQLite file in OUT."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at once; default: one for each core.", min=1)
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write the chosen model as model.onnx, too.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also redo what a machine that died was training.")
    ] = False,
) -> None:
    """The smallest served model that is about as good as a wide one.

    Tunes the reference, single layers of --reference-dim in float32, and searches over d, the same
    for all fields or less for larger tables, one layer or two, k, shared rows of rare categories
    and precisions of tables, every arm with as many trials. What is chosen is trained with fresh
    seeds, with and without each of its parts, and scored on test. Called again after an
    interruption, it continues. OUT gets model.safetensors, report.html, tables.md and shrink.json.

    Example: mlet shrink DATA --model deepfm --reference-dim 32 --tolerance 0.0005 --out small
    """
    if tolerance is not None and max_bytes is not None:
        raise ConfigError("give --tolerance or --max-bytes, not both: each says what is chosen")
    if tolerance is not None and tolerance <= 0:
        raise ConfigError(f"--tolerance {tolerance}: expected a number above 0")
    given = merge(
        from_file(config, optimizer),
        overrides(
            model=model,
            optimizer=optimizer,
            learning_rate=None,
            epochs=epochs,
            batch_size=batch_size,
            assignments=set_,
        ),
    )
    values: dict[str, Any] = merge({"optimizer": recipe(given)["optimizer"]}, given)
    values["data"] = str(data.resolve())
    values["training"] = one_thread(values.get("training", {}))
    most = None if max_bytes is None else parse_bytes(max_bytes, "--max-bytes")
    study = ShrinkStudy.of(
        RunConfig.parse(values, "shrink"),
        reference_dim,
        tolerance=None if most is not None else tolerance or _TOLERANCE,
        max_bytes=most,
        seeds=seeds,
        tuning={"trials": trials},
        resamples=1,
    )
    try:
        with counting() as report:
            result = run_search(
                study, out, storage=storage, jobs=jobs, take_over=take_over, report=report
            )
    except KeyboardInterrupt:
        complain("stopped; the same command continues where it was")
        raise typer.Exit(130) from None
    page = write_shrink_report(result, out)
    show_table("What was chosen, by fresh seeds on test", columns(result), rows(result), left=2)
    for sentence in sentences(result):
        say(sentence)
    say(f"model: {result.model_file} ({human_bytes(result.chosen.point.model_bytes)} served)")
    if onnx:
        found = load_collapsed_model(result.model_file)
        file = out / "model.onnx"
        to_onnx(found.model, found.schema, file)
        say(f"model: {file}")
    say(f"report: {page}")
