"""Two-layer collections among the modules that TorchRec shards."""

from __future__ import annotations

from typing import Any

import torch
from torchrec.distributed.embedding_types import BaseEmbeddingSharder

from mlet.distributed.sequence_shardings import SEQUENCE_SHARDINGS
from mlet.distributed.sharded_collection import ShardedTwoLayerEmbeddingBagCollection
from mlet.distributed.sharded_factors import is_rowwise
from mlet.distributed.sharded_sequences import ShardedTwoLayerEmbeddingCollection
from mlet.distributed.shardings import BY_COLUMNS, SHARDINGS
from mlet.distributed.table_checks import fused_kernels, shardable
from mlet.nn.torchrec_collections import (
    TwoLayerEmbeddingBagCollection,
    TwoLayerEmbeddingCollection,
)


class _Sharder(BaseEmbeddingSharder[Any]):  # type: ignore[misc]
    """What both have in common."""

    def shard(
        self,
        module: Any,
        params: Any,
        env: Any,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> Any:
        """The collection on all processes.

        Raises:
            ConversionError: it cannot be sharded, and why.
        """
        return self.sharded_module_type(
            module,
            params,
            env,
            fused_params=self.fused_params,
            device=device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
            **self._options(),
        )

    def reshard(self, sharded_module: Any, *_: Any, **__: Any) -> Any:
        """Not of two-layer tables.

        Raises:
            ConversionError: always.
        """
        return sharded_module.update_shards()

    def shardable_parameters(self, module: Any) -> dict[str, Any]:
        """Of each table one of the shape of its rows (n × k), without values."""
        return dict(shardable(module))

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """FBGEMM's, fused with their optimizer."""
        return fused_kernels(compute_device_type)

    def _options(self) -> dict[str, Any]:
        """More that the sharded collection is given."""
        return {}


class TwoLayerEmbeddingBagCollectionSharder(_Sharder):
    """Shards the collection that `mlet.convert` makes of an ``EmbeddingBagCollection``.

    To be given to a planner and to ``DistributedModelParallel`` beside TorchRec's own::

        sharders = [*get_default_sharders(), TwoLayerEmbeddingBagCollectionSharder(fused_params)]

    A planner sees tables of n × k, which is what is stored and read. They are sharded in all of
    TorchRec's ways but data-parallel; not by columns, if row-wise Adagrad trains them.

    Args:
        fused_params: FBGEMM's of the tables, as TorchRec's sharders take them: ``optimizer``,
            ``learning_rate``, ``eps``. The rule is that of the projections too.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """TorchRec's names of them."""
        rowwise = is_rowwise(self.fused_params or {})
        return [kind for kind in SHARDINGS if not (rowwise and kind in BY_COLUMNS)]

    @property
    def module_type(self) -> type[TwoLayerEmbeddingBagCollection]:
        """What is sharded."""
        return TwoLayerEmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedTwoLayerEmbeddingBagCollection]:
        """What it becomes."""
        return ShardedTwoLayerEmbeddingBagCollection


class TwoLayerEmbeddingCollectionSharder(_Sharder):
    """Shards the collection that `mlet.convert` makes of an ``EmbeddingCollection``: table-wise or
    row-wise.

    Args:
        fused_params, qcomm_codecs_registry, use_index_dedup: as TorchRec's sharder takes them.
    """

    def __init__(
        self,
        fused_params: dict[str, Any] | None = None,
        qcomm_codecs_registry: dict[str, Any] | None = None,
        use_index_dedup: bool = False,
    ) -> None:
        super().__init__(fused_params, qcomm_codecs_registry)
        self._use_index_dedup = use_index_dedup

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """TorchRec's names of them."""
        return list(SEQUENCE_SHARDINGS)

    @property
    def module_type(self) -> type[TwoLayerEmbeddingCollection]:
        """What is sharded."""
        return TwoLayerEmbeddingCollection

    @property
    def sharded_module_type(self) -> type[ShardedTwoLayerEmbeddingCollection]:
        """What it becomes."""
        return ShardedTwoLayerEmbeddingCollection

    def _options(self) -> dict[str, Any]:
        return {"use_index_dedup": self._use_index_dedup}
