"""``mlet describe``: how sparse a data set is, and which tables are worth two layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mlet.atomic import write_text
from mlet.cli.console import print_json, say, show_table
from mlet.data import PreparedDataset
from mlet.data.properties import RARE_BELOW, DatasetProperties, FieldProperties, properties
from mlet.data.schema import FieldSchema
from mlet.models import DLRMConfig
from mlet.nn.inner_dim import InnerDim
from mlet.reporting.text import without_nan
from mlet.training.inner_dims import inner_dims_of

_COLUMNS = (
    "field", "categories", "Zipf", "seen once", "rare in test", "new in test", "inner dimension",
)  # fmt: skip


def describe(
    data: Annotated[Path, typer.Argument(help="Prepared data set.")],
    dim: Annotated[int, typer.Option(help="Embedding dimension d to choose k for.", min=1)] = 16,
    json: Annotated[
        Path | None, typer.Option(help="Also write the numbers here; - prints them alone.")
    ] = None,
) -> None:
    """How sparse is this data, and which of its tables are worth two layers?

    Counts, for every field, categories, how unevenly they occur (the exponent of their Zipf law),
    how many occur once, and how often test rows hold a rare category or one that training never
    saw; and says which inner dimension `inner_dim: auto` chooses, or why it leaves a table
    ordinary. Nothing is trained.

    Example: mlet describe DATA --dim 8
    """
    dataset = PreparedDataset(data)
    found = properties(dataset)
    chosen = inner_dims_of(DLRMConfig(dim=dim, inner_dim="auto"), dataset)
    numbers = without_nan(
        {**asdict(found), "inner_dims": {name: asdict(one) for name, one in chosen.items()}}
    )
    if json == Path("-"):
        print_json(numbers)
        return
    rows = [
        _row(field, _inner_dim(entry, chosen))
        for field, entry in zip(found.fields, dataset.schema.fields, strict=True)
    ]
    show_table(f"{data}: categories by field", _COLUMNS, rows)
    say(_sentence(found))
    if json is not None:
        import json as json_format

        write_text(json, json_format.dumps(numbers, indent=2) + "\n")


def _inner_dim(field: FieldSchema, chosen: Mapping[str, InnerDim]) -> str:
    """What is said of a field's table."""
    if field.shares is not None:
        return f"in the table of {field.shares}"
    found = chosen[field.name]
    return f"{found.value}" if found.value else f"ordinary: {found.reason}"


def _row(field: FieldProperties, inner_dim: str) -> tuple[str, ...]:
    return (
        field.name,
        f"{field.categories:,}",
        "–" if math.isnan(field.zipf) else f"{field.zipf:.2f}",
        *(f"{share:.1%}" for share in (field.once, field.rare, field.unseen)),
        inner_dim,
    )


def _sentence(found: DatasetProperties) -> str:
    return (
        f"{found.rows:,} training rows, {found.rows_per_category:.1f} for each category; "
        f"{found.rare_rows:.1%} of the test rows have a category with under {RARE_BELOW} training "
        f"rows, {found.unseen_rows:.1%} one that training never saw"
    )
