"""Tables that lie in a file, of which memory holds what is being worked on.

The file is mapped: reading and writing rows is reading and writing memory, and the system keeps as
much of it there as there is room for. It is working state, of one process and without a name, so
that nothing is left of it when the process ends, in whatever way; what counts are checkpoints.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mlet.engine import empty_rows
from mlet.errors import WriteError

_ZEROS = bytes(1 << 20)


class TableFiles:
    """Where tables lie in files.

    Args:
        folder: on a disk; it, or the next one above it that there is.
    """

    def __init__(self, folder: Path) -> None:
        folder = Path(folder).absolute()
        self.folder = next(place for place in (folder, *folder.parents) if place.is_dir())

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A table in a file of its own, which has its room on the disk from now on: a disk that
        gets full later does no harm to it.

        Raises:
            WriteError: there is no room for it, or the folder cannot be written to.
        """
        size = prod(shape) * dtype.itemsize
        if size == 0:
            return torch.zeros(tuple(shape), dtype=dtype)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                _reserve(file, size)
                memory = mmap.mmap(file.fileno(), size)
                if hasattr(mmap, "MADV_RANDOM"):
                    # Rows lie anywhere: what is read ahead with each would drive others out.
                    memory.madvise(mmap.MADV_RANDOM)
        except OSError as error:
            raise WriteError(
                f"{self.folder}: no file for a table of {size:,} bytes ({error.strerror}); make "
                f"room there, or keep tables in memory with training.tables_in=memory"
            ) from None
        return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))


def _reserve(file: BinaryIO, size: int) -> None:
    """Let a file be so long, all zeros, and have the room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, len(_ZEROS)):
        file.write(_ZEROS[: size - start])
    file.flush()


_current: ContextVar[TableFiles | None] = ContextVar("where tables lie", default=None)


@contextmanager
def tables_in(files: TableFiles | None) -> Iterator[None]:
    """Within the context, tables are made in files; with None, in memory, as they are elsewhere.

    A model's tables stay where they were made, and what is made of them, states of their optimizer
    and collapsed ones, lies there too.
    """
    token = _current.set(files)
    try:
        yield
    finally:
        _current.reset(token)


def current_files() -> TableFiles | None:
    """Where tables are made now; None in memory."""
    return _current.get()


def new_table(shape: Sequence[int], dtype: torch.dtype | None, files: TableFiles | None) -> Tensor:
    """A table to be filled, in a file or in memory; in torch's default dtype for None."""
    if files is None:
        return empty_rows(shape, dtype)
    return files.zeros(shape, dtype or torch.get_default_dtype())
