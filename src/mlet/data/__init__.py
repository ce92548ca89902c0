"""Raw click data to prepared data sets, and prepared data sets to batches."""

from typing import TYPE_CHECKING, Any

from mlet.data.dataset import PreparedDataset
from mlet.data.prepare import SplitRule, prepare
from mlet.data.schema import DatasetSchema

if TYPE_CHECKING:
    from mlet.data.loader import Batch, BatchLoader

__all__ = ["Batch", "BatchLoader", "DatasetSchema", "PreparedDataset", "SplitRule", "prepare"]


def __getattr__(name: str) -> Any:
    """Batches, when they are asked for: they are of torch, which preparation does without."""
    if name not in ("Batch", "BatchLoader"):
        raise AttributeError(f"module 'mlet.data' has no attribute {name!r}")
    from mlet.data import loader

    return getattr(loader, name)
