"""``mlet predict``: raw rows to scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlet.cli.console import counting, say
from mlet.data.readers import TableSchema
from mlet.data.schema import RawFormat
from mlet.errors import ConfigError
from mlet.scoring import score_files


def predict(
    model: Annotated[
        Path,
        typer.Argument(metavar="RUN|MODEL", help="Finished run, or collapsed .safetensors file."),
    ],
    files: Annotated[
        list[Path],
        typer.Argument(help="Raw files, folders, patterns in quotes; - is standard input."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .parquet or .csv.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Pass this raw column through. Repeatable."),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Of the files: criteo, avazu, movielens, libfm, or table (CSV, Parquet with a "
            "column for each field). Default: that of the training data.",
        ),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="YAML of a table whose columns are not those of training.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Score raw rows, as they come: categories by name, dense features unscaled, no label needed.

    The model holds its vocabularies and scalings; the prepared data set is not needed. Scores are
    those of **evaluate** to the bit, in the order of the rows, in the column `score`. What training
    never saw, or too rarely, is the unknown category; a missing value is what it was in training.

    Example: mlet predict RUN 'rows/*.parquet' --keep user -o scores.parquet
    """
    given = None if format_ is None else RawFormat(name=format_)
    if schema is not None:
        if format_ not in (None, "table"):
            raise ConfigError(f"--schema describes a table; leave out --format {format_}")
        given = RawFormat(name="table", table=TableSchema.load(schema).model_dump(mode="json"))
    with counting() as report:
        rows = score_files(
            model, files, out, keep=keep or [], format=given, overwrite=overwrite, report=report
        )
    say(f"{rows:,} rows scored -> {out}")
