"""Columns of a prepared data set as they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt


class ColumnFile:
    """A .npy file of known length, written from the front.

    Written rather than mapped: on a full disk a write is an error, a mapped page kills the process.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, rows: int, width: int | None = None):
        self._dtype = np.dtype(dtype)
        self._path = path
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (rows,) if width is None else (rows, width),
        }
        with path.open("wb") as file:
            np.lib.format.write_array_header_2_0(file, header)

    def append(self, values: npt.NDArray[np.generic]) -> None:
        """Write more rows."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(values, self._dtype).data)
