"""Where the rows of a collapsed table are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torchrec.distributed.comm import get_local_size
from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import EnumerableShardingSpec, ShardingType, ShardMetadata
from torchrec.modules.embedding_configs import PoolingType

from mlet.distributed.shardings import BY_COLUMNS


def narrow_plan(config: Any, sharding: Any, processes: int, *, factored: bool) -> Any:
    """The plan of a collapsed table: the same rows in the same places, d wide.

    Of a two-layer table by columns every row is in several places, and none of them has a row of
    the product. It is sharded row-wise; if it takes means, table-wise, where its first columns
    were: TorchRec 1.8.0 divides all features beside a row-wise table of means, and no feature of a
    grid's, so that an ordinary table in a grid does not stay there either.

    Args:
        config: TorchRec's of the table, d wide.
        sharding: its plan, k wide.
        processes: how many there are.
        factored: whether it has two layers.
    """
    n, dim, shards = config.num_embeddings, config.embedding_dim, sharding.sharding_spec.shards
    if sharding.sharding_type not in BY_COLUMNS:
        made = [
            ShardMetadata(list(s.shard_offsets), [s.shard_sizes[0], dim], s.placement)
            for s in shards
        ]
        return replace(sharding, sharding_spec=EnumerableShardingSpec(made))
    if not factored and sharding.sharding_type != ShardingType.GRID_SHARD.value:
        return sharding
    kind, ranks = ShardingType.ROW_WISE, list(range(processes))
    if getattr(config, "pooling", None) == PoolingType.MEAN:
        kind, ranks = ShardingType.TABLE_WISE, [sharding.ranks[0]]
    block = -(-n // len(ranks))
    device, local = shards[0].placement.device().type, get_local_size(processes)
    made = [
        ShardMetadata(
            [min(place * block, n), 0],
            [min(block, max(0, n - place * block)), dim],
            placement(device, rank, local),
        )
        for place, rank in enumerate(ranks)
    ]
    return replace(
        sharding,
        sharding_type=kind.value,
        ranks=ranks,
        sharding_spec=EnumerableShardingSpec(made),
    )
