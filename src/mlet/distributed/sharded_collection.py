"""A two-layer collection of bags on many processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mlet.distributed.sharded_factors import ShardedFactors, wide_parameters
from mlet.distributed.shardings import SHARDINGS
from mlet.distributed.table_checks import check_tables, table_shapes
from mlet.errors import ConversionError
from mlet.nn.torchrec_collections import TwoLayerEmbeddingBagCollection


class ShardedTwoLayerEmbeddingBagCollection(ShardedFactors, ShardedEmbeddingBagCollection):  # type: ignore[misc]
    """TorchRec's sharded collection of the k-wide tables W2, with projections W1 on the way out.

    A shard looks up, pools and projects; what is exchanged is d wide. W2 is trained by FBGEMM in
    the backward pass; W1, of which every process has a copy, in the same pass by the same rule. The
    ``state_dict`` has the names of the unsharded two-layer collection.

    What the given collection holds is kept, unless it is on the meta device: then factors are drawn
    as it says.

    Args:
        module: the collection.
        others: TorchRec's.

    Raises:
        ConversionError: a table cannot be sharded, or is not the same on all processes.
    """

    holder = "embedding_bags"

    def __init__(
        self, module: TwoLayerEmbeddingBagCollection, params: Any, env: Any, **others: Any
    ) -> None:
        because = "a copy of all rows on every process is what sharding is to spare"
        check_tables(module, params, SHARDINGS, because)
        self._prepare(module, params, env, others)
        super().__init__(_wide(module), params, env, **others)
        self._finish(module)
        self._take_means()

    def create_embedding_bag_sharding(self, sharding_infos: Any, *others: Any, **more: Any) -> Any:
        """TorchRec's, d wide outside."""
        self._make_rules(sharding_infos)
        kind = SHARDINGS[sharding_infos[0].param_sharding.sharding_type]
        more.pop("permute_embeddings", None)
        return kind(self._projections, sharding_infos, *others, **more)

    def embedding_bag_configs(self) -> list[Any]:
        """TorchRec's, of the tables as they are served: d wide."""
        return self.narrow_configs()

    def input_dist(self, ctx: Any, features: Any) -> Any:
        """TorchRec's, dividing by a bag's length where means are summed in parts, and only there:
        its own would divide by it all features of a collection that has such a table.

        Raises:
            ConversionError: TorchRec has no exchange of these features.
        """
        own_batches = isinstance(features, KeyedJaggedTensor) and features.variable_stride_per_key()
        if own_batches and ShardingType.GRID_SHARD.value in self._sharding_types:
            raise ConversionError(
                "features with batches of their own (VBE) cannot be exchanged in a grid; constrain "
                "the planner to other kinds of sharding"
            )
        found = super().input_dist(ctx, features)
        if self._has_mean_pooling_callback:
            ctx.divisor = torch.where(self._averaged, ctx.divisor, 1.0)
        return found

    def _take_means(self) -> None:
        self._pooling_type_to_rs_features[PoolingType.SUM.value] = []
        averaged = [one for sharding in self._embedding_shardings for one in sharding.averaged()]
        # Where a grid has means, TorchRec's own says no.
        self._has_mean_pooling_callback = any(averaged)
        columns = zip(averaged, self._embedding_dims, strict=True)
        self._averaged = torch.tensor(
            [one for one, width in columns for _ in range(width)], device=self._to()
        )

    @property
    def unsharded_module_type(self) -> type[TwoLayerEmbeddingBagCollection]:
        """What was sharded."""
        return TwoLayerEmbeddingBagCollection


def _wide(module: TwoLayerEmbeddingBagCollection) -> EmbeddingBagCollection:
    """TorchRec's collection of the rows alone, without values."""
    shapes = table_shapes(module)
    configs = [
        replace(config, embedding_dim=shapes[config.name][0][1], init_fn=None)
        for config in module.embedding_bag_configs()
    ]
    made = EmbeddingBagCollection(
        tables=configs,
        is_weighted=EmbeddingBagCollection.is_weighted(module),
        device=torch.device("meta"),
    )
    wide_parameters(module, made.embedding_bags)
    return made
