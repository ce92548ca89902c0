"""Tables of other libraries as Polars frames, without those libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from mlet.errors import DataError
from mlet.reading import first_line


def frame_of(table: Any, columns: Sequence[str]) -> pl.DataFrame:
    """A table as a Polars frame, of pandas those of the columns that it has.

    Raises:
        DataError: it is no table, or a column's values have no type in Polars.
    """
    if isinstance(table, pl.DataFrame):
        return table
    try:
        if type(table).__module__.partition(".")[0] == "pandas" and hasattr(table, "columns"):
            found = [place for place, name in enumerate(table.columns) if name in columns]
            return pl.DataFrame([_column(table.iloc[:, place]) for place in found])
        if hasattr(table, "__arrow_c_stream__"):
            return pl.DataFrame(table)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"the table cannot be read ({first_line(error)}); give columns of numbers, texts or "
            f"lists of them"
        ) from None
    raise DataError(
        f"a {type(table).__name__} is no row and no table; give a mapping, a Polars or pandas data "
        f"frame, or an Arrow table"
    )


def _column(column: Any) -> pl.Series:
    """A column of pandas, which itself needs pyarrow for all but numbers."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return pl.Series(str(column.name), column.to_numpy(), nan_to_null=True)
    return series(
        str(column.name),
        [
            None if missing else value
            for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True)
        ],
    )


def series(name: str, values: Sequence[Any]) -> pl.Series:
    """Python's values as a column: numbers, texts, or some of both as texts.

    Raises:
        TypeError, polars.exceptions.PolarsError: they are of kinds that do not go together.
    """
    plain = [
        value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value for value in values
    ]
    kinds = {type(value) for value in plain if value is not None}
    if kinds == {int, float}:
        return pl.Series(name, plain, dtype=pl.Float64)
    if len(kinds) > 1 and kinds <= {bool, int, float, str}:
        return pl.Series(name, [None if value is None else _text(value) for value in plain])
    return pl.Series(name, plain)


def _text(value: bool | int | float | str) -> str:
    """As `mlet.data.texts` makes it of a column of its kind."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)
