"""Two-layer tables over many processes, on TorchRec's ``DistributedModelParallel``.

Importing this imports TorchRec; nothing else in mlet does.
"""

from mlet.distributed.perf_estimator import TwoLayerPerfEstimator
from mlet.distributed.sharded_collection import ShardedTwoLayerEmbeddingBagCollection
from mlet.distributed.sharded_sequences import ShardedTwoLayerEmbeddingCollection
from mlet.distributed.sharder import (
    TwoLayerEmbeddingBagCollectionSharder,
    TwoLayerEmbeddingCollectionSharder,
)

__all__ = [
    "ShardedTwoLayerEmbeddingBagCollection",
    "ShardedTwoLayerEmbeddingCollection",
    "TwoLayerEmbeddingBagCollectionSharder",
    "TwoLayerEmbeddingCollectionSharder",
    "TwoLayerPerfEstimator",
]
