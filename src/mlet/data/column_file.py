"""Columns of a prepared data set as they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt


class ColumnFile:
    """A .npy file of known length, whose rows are written in any order and by any process.

    Written rather than mapped: on a full disk a write is an error, a mapped page kills the process.

    Args:
        path: of a new file.
        dtype, rows, width: what is in it; (rows, width), or (rows,) where that is None.
        short_header: as of `numpy.save`, which chooses the shortest.
    """

    def __init__(
        self,
        path: Path,
        dtype: npt.DTypeLike,
        rows: int,
        width: int | None = None,
        *,
        short_header: bool = False,
    ) -> None:
        self._dtype = np.dtype(dtype)
        self._path = path
        self._row_bytes = self._dtype.itemsize * (1 if width is None else width)
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (rows,) if width is None else (rows, width),
        }
        write_header = (
            np.lib.format.write_array_header_1_0
            if short_header
            else np.lib.format.write_array_header_2_0
        )
        with path.open("wb") as file:
            write_header(file, header)
            self._first = file.tell()

    def write(self, start: int, values: npt.NDArray[np.generic]) -> None:
        """Write the rows from ``start`` on."""
        with self._path.open("r+b") as file:
            file.seek(self._first + start * self._row_bytes)
            file.write(np.ascontiguousarray(values, self._dtype).data)
