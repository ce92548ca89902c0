"""Two-layer collections among the modules that TorchRec shards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchrec.distributed.embedding_types import BaseEmbeddingSharder, EmbeddingComputeKernel

from mlet.distributed.sharded_collection import ShardedTwoLayerEmbeddingBagCollection, table_shapes
from mlet.distributed.shardings import SHARDINGS
from mlet.nn.torchrec_collections import TwoLayerEmbeddingBagCollection


class TwoLayerEmbeddingBagCollectionSharder(BaseEmbeddingSharder[TwoLayerEmbeddingBagCollection]):  # type: ignore[misc]
    """Shards the collection that `mlet.convert` makes of an ``EmbeddingBagCollection``.

    To be given to a planner and to ``DistributedModelParallel`` beside TorchRec's own::

        sharders = [*get_default_sharders(), TwoLayerEmbeddingBagCollectionSharder(fused_params)]

    A planner sees tables of n × k, which is what is stored and read. They are sharded table-wise,
    row-wise or table-row-wise.

    Args:
        fused_params: FBGEMM's of the tables, as TorchRec's sharders take them: ``optimizer``,
            ``learning_rate``, ``eps``. The rule is that of the projections too.
    """

    def shard(
        self,
        module: TwoLayerEmbeddingBagCollection,
        params: Any,
        env: Any,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedTwoLayerEmbeddingBagCollection:
        """The collection on all processes.

        Raises:
            ConversionError: it cannot be sharded, and why.
        """
        return ShardedTwoLayerEmbeddingBagCollection(
            module,
            params,
            env,
            fused_params=self.fused_params,
            device=device,
            qcomm_codecs_registry=self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )

    def shardable_parameters(self, module: TwoLayerEmbeddingBagCollection) -> dict[str, Any]:
        """Of each table one of the shape of its rows (n × k), without values."""
        found = {}
        for table, (shape, source) in table_shapes(module).items():
            made = nn.Parameter(torch.empty(shape, dtype=source.dtype, device="meta"))
            for name in ("_optimizer_classes", "_optimizer_kwargs"):
                if hasattr(source, name):
                    setattr(made, name, getattr(source, name))
            found[table] = made
        return found

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Those whose exchange is d wide."""
        return list(SHARDINGS)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """FBGEMM's, fused with their optimizer."""
        kernels = [EmbeddingComputeKernel.FUSED]
        if compute_device_type == "cuda":
            kernels += [EmbeddingComputeKernel.FUSED_UVM, EmbeddingComputeKernel.FUSED_UVM_CACHING]
        return [kernel.value for kernel in kernels]

    @property
    def module_type(self) -> type[TwoLayerEmbeddingBagCollection]:
        """What is sharded."""
        return TwoLayerEmbeddingBagCollection

    @property
    def sharded_module_type(self) -> type[ShardedTwoLayerEmbeddingBagCollection]:
        """What it becomes."""
        return ShardedTwoLayerEmbeddingBagCollection
