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
            return pl.DataFrame([_column(table[name]) for name in table.columns if name in columns])
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
    values = [
        None if missing else value
        for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True)
    ]
    return pl.Series(str(column.name), values, strict=False)
