"""What a step with two-layer tables costs, for TorchRec's planner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import ShardEstimator

from mlet.distributed.forms import column_shares, projects_on_shards
from mlet.distributed.table_checks import configs_of
from mlet.nn.two_layer_collection import TwoLayerCollection


class TwoLayerPerfEstimator(ShardEstimator):  # type: ignore[misc]
    """TorchRec's estimate, of rows that are read k wide and vectors that are exchanged d wide, or,
    by columns, as `projects_on_shards` has it.

    Without it a planner takes the exchange for k wide too. It is given to TorchRec's enumerator in
    the place of its own::

        enumerator = EmbeddingEnumerator(topology, batch_size, estimator=[
            TwoLayerPerfEstimator(topology), EmbeddingStorageEstimator(topology),
        ])
        planner = EmbeddingShardingPlanner(topology, enumerator=enumerator)

    Args:
        topology, constraints: TorchRec's.
    """

    def __init__(self, topology: Any, constraints: Mapping[str, Any] | None = None) -> None:
        self._theirs = EmbeddingPerfEstimator(topology, constraints)

    def estimate(self, sharding_options: Sequence[Any], sharder_data_map: Any) -> None:
        """Fill in the ``perf`` of all shards; other modules' are TorchRec's."""
        self._theirs.estimate(sharding_options, sharder_data_map)
        ours = [
            option
            for option in sharding_options
            if isinstance(option.module[1], TwoLayerCollection)
        ]
        narrow = [_narrow(option) for option in ours]
        self._theirs.estimate(narrow, sharder_data_map)
        for option, other in zip(ours, narrow, strict=True):
            for shard, outside in zip(option.shards, other.shards, strict=True):
                shard.perf = replace(
                    shard.perf,
                    fwd_comms=outside.perf.fwd_comms,
                    bwd_comms=outside.perf.bwd_comms,
                )


def _narrow(option: Any) -> Any:
    """The same rows in the same places, as wide as their vectors are exchanged."""
    configs = {config.name: config for config in configs_of(option.module[1])}
    rows, inner_dim = option.tensor.shape
    dim = configs[option.name].embedding_dim
    shares = column_shares(shard.offset for shard in option.shards)
    made = copy.copy(option)
    if projects_on_shards(inner_dim, dim, shares):
        made._tensor = torch.empty(rows, dim, dtype=option.tensor.dtype, device="meta")
        made.shards = [replace(shard, size=[shard.size[0], dim]) for shard in option.shards]
    else:
        made.shards = [replace(shard) for shard in option.shards]
    return made
