"""Parquet files by their own names, whose failure to be written is the OSError that it is."""

from __future__ import annotations

from pathlib import Path

import polars as pl


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame.

    Raises:
        OSError: the file cannot be written, as on a full disk; Polars reports a ComputeError.
    """
    try:
        frame.write_parquet(path, compression="lz4")
    except pl.exceptions.ComputeError as error:
        raise OSError(None, str(error), str(path)) from None


def read_parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a frame, or some columns of it; ``*``, ``?`` and ``[ ]`` in a name are themselves."""
    return pl.read_parquet(path, columns=columns, glob=False)
