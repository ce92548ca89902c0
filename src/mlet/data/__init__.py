"""Raw click data to prepared data sets, and prepared data sets to batches."""

from mlet.data.dataset import PreparedDataset
from mlet.data.loader import Batch, BatchLoader
from mlet.data.prepare import SplitRule, prepare
from mlet.data.schema import DatasetSchema

__all__ = ["Batch", "BatchLoader", "DatasetSchema", "PreparedDataset", "SplitRule", "prepare"]
