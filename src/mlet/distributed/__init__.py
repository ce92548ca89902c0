"""Two-layer tables over many processes, on TorchRec's ``DistributedModelParallel``.

Importing this imports TorchRec; nothing else in mlet does.
"""

from mlet.distributed.perf_estimator import TwoLayerPerfEstimator
from mlet.distributed.sharded_collection import ShardedTwoLayerEmbeddingBagCollection
from mlet.distributed.sharder import TwoLayerEmbeddingBagCollectionSharder

__all__ = [
    "ShardedTwoLayerEmbeddingBagCollection",
    "TwoLayerEmbeddingBagCollectionSharder",
    "TwoLayerPerfEstimator",
]
