"""``mlet progressive``: SLT and MLET on what comes next."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mlet.atomic import write_text
from mlet.cli.console import complain, counting, show_table
from mlet.cli.settings import (
    Assignments,
    BatchSize,
    Model,
    Optimizer,
    Preset,
    arms_from,
    from_file,
    overrides,
    parse_inner_dims,
    parse_integers,
    parse_rates,
)
from mlet.data import PreparedDataset
from mlet.reporting.text import without_nan
from mlet.settings import merge
from mlet.studies.progressive_comparison import (
    ProgressiveConfig,
    ProgressiveResult,
    compare_progressively,
)
from mlet.training.presets import RECIPE, recipe_model


def progressive(
    data: Annotated[Path, typer.Argument(help="Prepared data set, split by time or order.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the runs' numbers.")],
    model: Model = None,
    dims: Annotated[str, typer.Option(help="Embedding dimensions d.")] = "4,16",
    inner_dims: Annotated[
        str, typer.Option(help="Inner dimensions k of the MLET arms; auto, the recipe's.")
    ] = "auto",
    optimizer: Optimizer = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            help="Step sizes of the tables that every arm tries; default: the settings' own, a "
            "quarter and four times it."
        ),
    ] = None,
    block_rows: Annotated[
        int,
        typer.Option(
            help="Rows scored before any of them is trained on, rounded up to batches.", min=1
        ),
    ] = 10_000,
    seeds: Annotated[int, typer.Option(help="Runs of each arm.", min=1)] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training rows, the past; default: 1.", min=1)
    ] = None,
    batch_size: BatchSize = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of run settings; mlet: those of MLET arms.")
    ] = None,
    preset: Preset = RECIPE,
    set_: Assignments = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at once; default: one for each core.", min=1)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the numbers here.")] = None,
) -> None:
    """Would MLET have served better, day by day?

    Trains on the training rows, then goes through validation and test rows in their order: each
    block is scored by a model that has seen all rows before it, then trained on. The step size of
    every arm is chosen on the validation rows. Called again, it continues.

    Example: mlet progressive DATA --out OUT --dims 4,16 --set mlet.table_bias=true
    """
    given = merge(
        merge({"training": {"epochs": 1}}, from_file(config, optimizer)),
        overrides(
            model=model,
            optimizer=optimizer,
            learning_rate=None,
            epochs=epochs,
            batch_size=batch_size,
            assignments=set_,
        ),
    )
    own = given.pop("mlet", None)
    values, mlet = arms_from(preset, given)
    values["data"] = str(data.resolve())
    settings = ProgressiveConfig.parse(
        {
            "base": values,
            "dims": parse_integers(dims, "--dims"),
            "inner_dims": parse_inner_dims(inner_dims),
            "mlet": mlet if own is None else {**_recipe(preset, given), **own},
            "learning_rates": None if learning_rates is None else parse_rates(learning_rates),
            "block_rows": block_rows,
            "seeds": seeds,
        },
        "progressive",
    )
    if PreparedDataset(data).schema.split_by == "given":
        complain(
            "the parts of this data set were given: whether validation and test rows come after "
            "the training rows is for you to know"
        )
    try:
        with counting() as report:
            result = compare_progressively(settings, out, jobs=jobs, report=report)
    except KeyboardInterrupt:
        complain("stopped; the same command continues where it was")
        raise typer.Exit(130) from None
    show_table(
        "On rows that came after, means over seeds ± 95 % t-intervals",
        result.columns(),
        result.rows(),
        bold=lambda row: row[0] != "slt",
        by=1,
    )
    if json is not None:
        write_text(json, json_format.dumps(without_nan(_as_dict(result)), indent=1) + "\n")


def _recipe(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--set mlet.…`` is put over: the recipe, but for what the model was given."""
    if preset != RECIPE:
        return {}
    found = recipe_model(given.get("model", {}))
    return {name: value for name, value in found.items() if name != "inner_dim"}


def _as_dict(result: ProgressiveResult) -> dict[str, object]:
    return {
        "settings": result.config.model_dump(mode="json"),
        "arms": [
            {
                "method": arm.method.name,
                "dim": arm.dim,
                "learning_rate": arm.learning_rate,
                "runs": [asdict(run) for run in arm.runs],
            }
            for arm in result.arms
        ],
    }
