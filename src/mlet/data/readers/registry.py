"""The readers by name: mlet's own, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from mlet.data.source import RawSource
from mlet.registry import Registry

#: Raw files to a source of rows.
Reader: TypeAlias = Callable[[list[Path]], RawSource]

READERS: Registry[Reader] = Registry("reader", "mlet.readers")
