"""Random raw rows, and whether a graph scores them as the model does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from mlet.data.dataset import SplitColumns
from mlet.data.encoding import Encoder
from mlet.data.source import LINE, RawRows
from mlet.data.texts import WORDS
from mlet.export.program import CHECKED_ROWS, difference_of
from mlet.export.raw.columns import RawColumn, RawTable
from mlet.export.serving import ServingModule

#: What no vocabulary is expected to hold, and other spellings of what some do.
_UNKNOWN = ("", "no such category", "-1.50", " ", "-0.0", "7.0", *WORDS)
_FROM, _DAYS = dt.datetime(2004, 2, 27, tzinfo=dt.timezone.utc), 5_000


def compared_raw(
    module: ServingModule, table: RawTable, run: Callable[[Mapping[str, Any]], Tensor]
) -> tuple[int, float]:
    """On how many random raw rows a graph was compared, and the largest difference.

    Raises:
        ConversionError: it does not score as the module does.
    """
    rows, given = _random_rows(table, np.random.default_rng(1), CHECKED_ROWS)
    expected = module(*tensors(module, encoded(table, rows)))
    return len(expected), difference_of(expected, run(given))


def encoded(table: RawTable, raw: pl.DataFrame) -> SplitColumns:
    """As `mlet.Predictor` encodes them."""
    lines = pl.Series(LINE, np.arange(len(raw), dtype=np.uint64))
    raw = table.rows.without_nulls(raw.with_columns(lines), table.names)
    text = table.rows.texts(raw, table.names, "")
    features = pl.DataFrame(table.rows.features(raw, text, ""))
    encoder = Encoder(table.schema, table.vocabularies)
    return encoder.encode(encoder.check(RawRows("", lines, features, pl.DataFrame())))


def tensors(module: ServingModule, columns: SplitColumns) -> list[Tensor]:
    """Encoded rows as a module takes them."""
    given = {"dense": torch.from_numpy(np.ascontiguousarray(columns.dense))}
    if columns.ids:
        given["ids"] = torch.from_numpy(np.stack(columns.ids, axis=1).astype(np.int64))
    for name, (values, offsets) in columns.bags.items():
        given[f"{name}.values"] = torch.from_numpy(values.astype(np.int64))
        given[f"{name}.lengths"] = torch.from_numpy(np.diff(offsets))
    return [given[name] for name in module.inputs]


def _random_rows(
    table: RawTable, draw: np.random.Generator, rows: int
) -> tuple[pl.DataFrame, dict[str, npt.NDArray[Any]]]:
    """Rows as a table, and as a graph takes them."""
    given: dict[str, npt.NDArray[Any]] = {}
    columns: list[pl.Series] = []
    for column in table.columns:
        values = _values(table, column, draw, rows)
        given[column.name] = values
        if table.time is not None and column.name == table.time.name:
            parts = [table.time.read(int(value)) for value in values]
            columns += [pl.Series(f, [part[f] for part in parts]) for f in table.time.fields]
        elif column.kind == "texts":
            bags = [[text for text in row if text] for row in values]
            columns.append(pl.Series(column.name, bags, dtype=pl.List(pl.String)))
        else:
            listed = values.tolist()
            columns.append(pl.Series(column.name, listed))
    return pl.DataFrame(columns), given


def _values(
    table: RawTable, column: RawColumn, draw: np.random.Generator, rows: int
) -> npt.NDArray[Any]:
    """Of one column."""
    if column.kind == "number":
        return _numbers(table, column.name, draw, rows)
    if table.time is not None and column.name == table.time.name:
        hours = draw.integers(0, 24 * _DAYS, rows).tolist()
        moments = [_FROM + dt.timedelta(hours=hour) for hour in hours]
        return np.array([table.time.written(moment) for moment in moments])
    known = table.vocabularies[column.name].table["category"].slice(1)
    some = known.sample(min(len(known), rows), seed=1).to_list()
    if column.kind == "integer":
        integers = [int(text) for text in some if text] + [*table.missing_integers, -12_345]
        return draw.choice(np.array(integers), rows)
    shape = rows if column.kind == "text" else (rows, 4)
    spelled = [f"{text}.0" for text in some[:20]]
    some += [*spelled, *_UNKNOWN, *table.missing]
    chosen: npt.NDArray[Any] = draw.choice(np.array(some, object), shape)
    return chosen


def _numbers(
    table: RawTable, name: str, draw: np.random.Generator, rows: int
) -> npt.NDArray[np.float64]:
    (feature,) = (one for one in table.schema.raw_dense if one.name == name)
    at = feature.quantiles or [feature.mean or 0.0]
    values: npt.NDArray[np.float64] = draw.choice(np.array(at), rows)
    values += (draw.random(rows) < 0.5) * draw.normal(size=rows) * (feature.deviation or 10.0)
    if feature.missing_in_training is not False:
        values[draw.random(rows) < 0.2] = np.nan
        some = table.missing_numbers[:rows]
        values[: len(some)] = some
    elif table.missing_numbers:
        values[np.isin(values, table.missing_numbers)] = 0.123
    return values
