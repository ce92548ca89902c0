"""Checksums of a prepared data set's files: a flipped bit is an error, not another AUC."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

from mlet.data.workers import Here, Workers
from mlet.errors import DataError
from mlet.reading import reading

_BLOCK_BYTES = 1 << 20


def checksums(root: Path, workers: Workers | None = None) -> dict[str, int]:
    """CRC-32 of every file below ``root``, by its path from there with forward slashes."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    workers = workers or Here()
    promises = [(path, workers.submit(crc32, path)) for path in files]
    return {path.relative_to(root).as_posix(): promise() for path, promise in promises}


def verify(root: Path, path: Path, expected: dict[str, int] | None) -> None:
    """Check one file of the data set at ``root``, once in a process unless it has changed.

    Args:
        root: the data set.
        path: its file.
        expected: as `checksums` gave; None, for data of mlet 0.1, checks nothing.

    Raises:
        DataError: the file is missing, or is not the one that was prepared.
    """
    if expected is None:
        return
    with reading(path, DataError, "prepare the data set again"):
        status = path.stat()
        found = _remembered(path, status.st_mtime_ns, status.st_size)
    if found != expected.get(path.relative_to(root).as_posix()):
        raise DataError(
            f"{path}: damaged, or of another data set (its checksum is not the one in the schema); "
            f"prepare the data set again"
        )


@cache
def _remembered(path: Path, modified: int, size: int) -> int:
    return crc32(path)


def crc32(path: Path) -> int:
    """CRC-32 of a file's bytes, read a block at a time."""
    total = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            total = zlib.crc32(block, total)
    return total
