"""Logs as newcomers have them, made on the spot."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from mlet.data.readers import TableSchema, TableSource
from mlet.data.source import field_column

#: The first moment of the logs.
START = dt.datetime(2024, 3, 1)
SCHEMA = {"label": "click", "categorical": ["user"], "time": "when"}


def moments(count: int, first: int = 0) -> list[dt.datetime]:
    """One every three hours: after ten days, days are no months any more."""
    return [START + dt.timedelta(hours=3 * row) for row in range(first, first + count)]


def clicks(
    count: int, show: Callable[[dt.datetime], object], first: int = 0
) -> list[dict[str, object]]:
    """Rows with a click, a user and a time as ``show`` writes it."""
    return [
        {"click": row % 2, "user": f"u{row % 7}", "when": show(moment)}
        for row, moment in enumerate(moments(count, first), start=first)
    ]


def write_csv(path: Path, rows: Iterable[dict[str, object]], separator: str = ",") -> Path:
    """Rows as they are, without quotes."""
    rows = list(rows)
    lines = [separator.join(rows[0])]
    lines += [separator.join(map(str, row.values())) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_schema(path: Path, schema: dict[str, Any]) -> Path:
    """A schema as YAML."""
    path.write_text(yaml.safe_dump(schema, sort_keys=False))
    return path


def source(paths: Sequence[Path], schema: dict[str, Any], **more: Any) -> TableSource:
    """The files as they are read."""
    return TableSource(paths, TableSchema.parse(schema, "the schema of the test"), **more)


def read(paths: Sequence[Path], schema: dict[str, Any], **more: Any) -> pl.DataFrame:
    """All rows of the files."""
    return pl.concat(list(source(paths, schema, **more).frames()))


def categories(paths: Sequence[Path], schema: dict[str, Any], name: str) -> list[object]:
    """The categories of a field in all rows."""
    return read(paths, schema)[field_column(name)].to_list()
