"""``mlet compare``: SLT and MLET on the user's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlet.atomic import write_text
from mlet.cli.console import complain, counting, say, show_table
from mlet.cli.settings import (
    Assignments,
    BatchSize,
    Epochs,
    Model,
    Optimizer,
    Preset,
    Rate,
    arms_from,
    from_file,
    overrides,
    parse_inner_dims,
    parse_integers,
    parse_rates,
)
from mlet.data import PreparedDataset
from mlet.data.properties import properties
from mlet.errors import ConfigError
from mlet.settings import merge
from mlet.studies import CompareConfig, Comparison, write_comparison
from mlet.studies import compare as compare_arms
from mlet.studies.expectation import expectation
from mlet.training.presets import RECIPE


def compare(
    data: Annotated[Path, typer.Argument(help="Prepared data set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for runs and report.")],
    model: Model = None,
    dims: Annotated[str, typer.Option(help="Embedding dimensions d.")] = "2,4,8,16",
    inner_dims: Annotated[
        str, typer.Option(help="Inner dimensions k of the MLET arms; auto, the recipe's.")
    ] = "auto",
    seeds: Annotated[int, typer.Option(help="Runs of each arm.", min=1)] = 3,
    optimizer: Optimizer = None,
    learning_rate: Rate = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            help="Every arm tries these and keeps the best on validation. Default: a quarter of "
            "the optimizer's step size, itself, and four times it; --learning-rate tries only one."
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of run settings.")] = None,
    preset: Preset = RECIPE,
    set_: Assignments = None,
    rare_below: Annotated[
        int, typer.Option(help="A row is rare if a category has fewer training rows.", min=1)
    ] = 10,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at once; default: one for each core.", min=1)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the numbers here.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Also write the table here.")
    ] = None,
) -> None:
    """What would MLET give me on my data?

    Trains single-layer (SLT) and multi-layer (MLET) embeddings for every dimension with the same
    budget, early stopping and seeds, and prints quality, size, time and the iso-quality reduction.
    Called again after an interruption, it continues. OUT gets compare.json and report.html.
    """
    given = merge(
        from_file(config, optimizer),
        overrides(
            model=model,
            optimizer=optimizer,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            assignments=set_,
        ),
    )
    values, mlet = arms_from(preset, given)
    values["data"] = str(data.resolve())
    comparison_config = CompareConfig.parse(
        {
            "base": values,
            "dims": parse_integers(dims, "--dims"),
            "inner_dims": parse_inner_dims(inner_dims),
            "mlet": mlet,
            "seeds": seeds,
            "learning_rates": _rates(learning_rates, learning_rate),
            "rare_below": rare_below,
        },
        "compare",
    )
    comparison_config.study()  # what cannot be one is refused first
    if comparison_config.base.model.task == "binary":  # the rule is of clicks
        say(expectation(properties(PreparedDataset(data))))
    try:
        with counting() as report:
            comparison = compare_arms(
                comparison_config,
                out,
                jobs=jobs,
                report=report,
            )
    except KeyboardInterrupt:
        complain("stopped; the same command continues where it was")
        raise typer.Exit(130) from None
    page = write_comparison(comparison, out)
    if json is not None:
        write_text(json, comparison.to_json())
    if markdown_file is not None:
        write_text(markdown_file, comparison.markdown())
    _print(comparison, page)


def _rates(text: str | None, single: float | None) -> list[float] | None:
    """The step sizes that every arm tries; none if the user gave just one, None for the default."""
    if text is not None and single is not None:
        raise ConfigError("give --learning-rate or --learning-rates, not both")
    if text is None:
        return None if single is None else []
    return parse_rates(text)


def _print(comparison: Comparison, page: Path) -> None:
    show_table(
        "SLT and MLET, means over seeds ± 95 % t-intervals",
        comparison.columns,
        comparison.rows(),
        bold=lambda row: row[0] == "MLET",
        by=1,
    )
    for sentence in comparison.verdict():
        say(sentence)
    headline = comparison.panel.task.headline
    ceiling = comparison.panel.schema.splits["test"].best.get(headline.name)
    if ceiling is not None:
        say(f"Best possible test {headline.label} of this synthetic data: {ceiling:.4f}.")
    say(f"report: {page}")
