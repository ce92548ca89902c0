"""Readers of published click-data formats, one file each."""

from mlet.data.readers.avazu import AvazuSource
from mlet.data.readers.criteo import CriteoSource
from mlet.data.readers.libfm import LibFMSource
from mlet.data.readers.movielens import MovieLensSource
from mlet.data.readers.registry import READERS
from mlet.data.readers.table import TableSchema, TableSource

__all__ = [
    "READERS",
    "AvazuSource",
    "CriteoSource",
    "LibFMSource",
    "MovieLensSource",
    "TableSchema",
    "TableSource",
]
