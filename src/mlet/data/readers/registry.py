"""The readers by name: mlet's own, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from mlet.data.source import RawSource
from mlet.errors import ConfigError
from mlet.registry import Registry

#: Raw files to a source of rows.
Reader: TypeAlias = Callable[[list[Path]], RawSource]

READERS: Registry[Reader] = Registry("reader", "mlet.readers")


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
    return source
