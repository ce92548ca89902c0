"""Where a run's tables lie, and what is said of a model that memory has no room for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlet.errors import RunError
from mlet.reading import first_line
from mlet.table_files import TableFiles, tables_in
from mlet.training.config import RunConfig


def table_files(config: RunConfig, run: Path) -> TableFiles | None:
    """Where the tables of a run lie, in its directory; None if that is in memory."""
    return TableFiles(run) if config.training.tables_in == "file" else None


@contextmanager
def tables_of(config: RunConfig, run: Path) -> Iterator[None]:
    """Within the context, tables are made where a run has them.

    Raises:
        RunError: memory has not the room that was asked for.
    """
    try:
        with tables_in(table_files(config, run)):
            yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        remedy = (
            "train in smaller batches (training.batch_size)"
            if config.training.tables_in == "file"
            else "tables that are larger can lie in a file: --set training.tables_in=file"
        )
        raise RunError(f"{run}: memory is too small ({first_line(error)}); {remedy}") from None
