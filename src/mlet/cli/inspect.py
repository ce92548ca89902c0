"""``mlet inspect`` and ``mlet suggest-k``."""

from __future__ import annotations

import json as json_format
import math
import shlex
from pathlib import Path
from typing import Annotated

import typer
import yaml

from mlet.atomic import write_text
from mlet.cli.console import say, show_table
from mlet.cli.settings import RunData, parse_bytes
from mlet.errors import ConfigError, RunError
from mlet.inspection import (
    SUMMARY_COLUMNS,
    inspect_checkpoint,
    inspect_run,
    summary_row,
    table_energies,
    write_page,
)
from mlet.reporting.text import human_bytes
from mlet.theory import factors_of, predicted_quality, suggest_inner_dims
from mlet.training import RunDirectory
from mlet.training.load import load_trained


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A run directory, or a checkpoint of a converted model.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path(
        "inspection.html"
    ),
    figures: Annotated[
        Path | None, typer.Option(help="A directory for the figures as SVG files, too.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="A run to hold it against, as one with ordinary tables (SLT)."),
    ] = None,
    data: RunData = None,
) -> None:
    """See what two layers do to a run's tables.

    Prints a line for every table and writes a page with figures: how updates are reweighted, who
    moves whom, spectra in the course of training (train with --set training.record_spectra=true),
    which categories gain over a baseline, and how large k need be.
    """
    if path.is_dir():
        inspection = inspect_run(path, baseline, data=data)
    elif baseline is not None or data is not None:
        raise ConfigError("--baseline and --data are for runs; a checkpoint knows no data set")
    else:
        inspection = inspect_checkpoint(path)
    write_page(inspection, out, figures)
    rows = map(summary_row, inspection.tables)
    show_table(f"two-layer tables of {inspection.source}", SUMMARY_COLUMNS, rows)
    for entry in inspection.tables:
        say(f"{entry.name}: {entry.energy.sentence()}")
    say(f"page: {out}")


def suggest_k(
    run: Annotated[Path, typer.Argument(help="A run at a large inner dimension, short or long.")],
    memory_budget: Annotated[
        str | None,
        typer.Option(help="What the tables may take in training, as 512M. Default: no limit."),
    ] = None,
    keep: Annotated[
        float, typer.Option(help="Share of its update energy that is enough.", min=0.01, max=1.0)
    ] = 0.99,
    data: RunData = None,
    json: Annotated[Path | None, typer.Option(help="Also write the suggestion here.")] = None,
) -> None:
    """Choose an inner dimension for every table.

    From the directions that a run at a large k makes use of (one epoch will do), predicts what each
    smaller k would keep, and spends a memory budget where it keeps most.
    """
    model, dataset = load_trained(RunDirectory(run), data)
    energies = table_energies(factors_of(model.embedding), dataset)
    if not energies:
        raise RunError(f"{run}: no two-layer table; train with --inner-dim, as --inner-dim 64")
    try:
        suggestion = suggest_inner_dims(
            energies,
            budget=None if memory_budget is None else parse_bytes(memory_budget, "--memory-budget"),
            share=keep,
        )
    except ValueError as error:
        raise ConfigError(f"--memory-budget {memory_budget}: {error}") from None
    rows = []
    for name, energy in energies.items():
        chosen = suggestion.inner_dims[name]
        sizes = (energy.dim, energy.inner_dim, energy.in_use, chosen)
        rows.append(
            (name, f"{energy.rows:,}", *map(str, sizes), f"{100 * energy.kept(chosen):.1f} %")
        )
    columns = ("table", "n", "d", "k of the run", "in use", "suggested k", "keeps")
    show_table("inner dimension by table", columns, rows)
    largest = max(energy.inner_dim for energy in energies.values())
    powers = [2**p for p in range(12) if 2**p < largest] + [largest]
    uniform = {k: predicted_quality(energies, k) for k in powers}
    say(
        "predicted share of the update energy kept with one k for all: "
        + ", ".join(f"k={k} {100 * value:.1f} %" for k, value in uniform.items())
    )
    say(
        f"the suggestion keeps {100 * suggestion.kept:.1f} % in {human_bytes(suggestion.bytes)} "
        f"of factors; use it with"
    )
    setting = yaml.safe_dump(
        suggestion.inner_dims, default_flow_style=True, sort_keys=False, width=math.inf
    )
    say(f"  --set {shlex.quote('model.inner_dims=' + setting.strip())}")
    if json is not None:
        content = {
            "inner_dims": suggestion.inner_dims,
            "kept": suggestion.kept,
            "bytes": suggestion.bytes,
            "uniform": uniform,
        }
        write_text(json, json_format.dumps(content, indent=2) + "\n")
