"""The readers by name: mlet's own, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import polars as pl

from mlet.data.schema import RawFormat
from mlet.data.source import RawRows, RawSource, rows_of
from mlet.errors import ConfigError
from mlet.registry import Registry

#: Raw files to a source of rows.
Reader: TypeAlias = Callable[[list[Path]], RawSource]

READERS: Registry[Reader] = Registry("reader", "mlet.readers")

#: mlet's own formats whose input may be folders and patterns of files.
OF_FILES = ("criteo", "avazu", "libfm", "table")


def open_raw(name: str, files: list[Path]) -> RawSource:
    """Raw files through the reader of a name.

    Raises:
        ConfigError: there is no such reader, or it is none.
    """
    reader = READERS[name]
    try:
        source = reader(files)
    except TypeError as error:
        raise ConfigError(f"reader {name!r} cannot be called with files: {error}") from error
    if not isinstance(source, RawSource):
        raise ConfigError(
            f"reader {name!r} gives a {type(source).__name__}, which is not what "
            f"mlet.data.source.RawSource says"
        )
    known = isinstance(getattr(source, "format", None), RawFormat)
    return source if known else _Named(source, name)


class _Named:
    """The source of another package's reader, with the name it was asked for by."""

    def __init__(self, source: RawSource, name: str) -> None:
        self._source = source
        self.format = RawFormat(name=name)
        self.description, self.columns = source.description, source.columns
        self.default_split = source.default_split

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`."""
        return self._source.frames()

    def rows(self, keep: Sequence[str]) -> Iterator[RawRows]:
        """See `mlet.data.source.RowSource`."""
        return rows_of(self._source, keep)
