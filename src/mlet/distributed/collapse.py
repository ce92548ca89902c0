"""Sharded two-layer collections to TorchRec's own sharded collections, shard by shard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EnumerableShardingSpec, ShardMetadata
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from mlet.distributed.sharded_collection import WIDTH_STEP, ShardedTwoLayerEmbeddingBagCollection
from mlet.errors import ConversionError
from mlet.nn.factored import collapse_table


def sharded_collections(model: nn.Module) -> dict[str, ShardedTwoLayerEmbeddingBagCollection]:
    """Those in a model, by qualified name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, ShardedTwoLayerEmbeddingBagCollection)
    }


def collapse_sharded(model: nn.Module) -> nn.Module:
    """The model with TorchRec's own collections in the place of two-layer ones, on every process.

    A process multiplies the rows that it has, and none has a whole table. The shards stay where
    they are; the tables' optimizers start afresh.

    Raises:
        ConversionError: FBGEMM's kernels have no tables of that width.
    """
    found = sharded_collections(model)
    for name, collection in found.items():
        for config in collection.embedding_bag_configs():
            if config.embedding_dim % WIDTH_STEP:
                raise ConversionError(
                    f"table {config.name!r} of {name!r} is {config.embedding_dim} wide when it is "
                    f"collapsed and FBGEMM takes multiples of {WIDTH_STEP}: save a checkpoint of "
                    f"the model as it is, and collapse that"
                )
    made = {name: _collapsed(collection) for name, collection in found.items()}
    for name, old in found.items():
        if model is old:
            whole: nn.Module = made[name]
            return whole
        for parent in list(model.modules()):
            for child, module in list(parent._modules.items()):
                if module is old:
                    parent._modules[child] = made[name]
    for part in model.modules():
        if isinstance(part, DistributedModelParallel):
            part._optim = part._init_optim(part._dmp_wrapped_module)
            for old, new in ((found[name], made[name]) for name in found):
                if old.module_fqn in part._plan.plan:
                    part._plan.plan[old.module_fqn] = new.module_sharding_plan
    return model


@torch.no_grad()
def _collapsed(collection: ShardedTwoLayerEmbeddingBagCollection) -> ShardedEmbeddingBagCollection:
    configs = collection.embedding_bag_configs()
    plan = {
        config.name: _narrow(collection.module_sharding_plan[config.name], config.embedding_dim)
        for config in configs
    }
    plain = EmbeddingBagCollection(
        tables=configs, is_weighted=collection._is_weighted, device=torch.device("meta")
    )
    given = collection.given
    sharder = EmbeddingBagCollectionSharder(
        fused_params=given.get("fused_params"),
        qcomm_codecs_registry=given.get("qcomm_codecs_registry"),
    )
    made = sharder.shard(
        plain, plan, collection._env, given.get("device"), given.get("module_fqn")
    ).train(collection.training)
    for config in configs:
        projection = collection.projections.get(config.name)
        new = made._model_parallel_name_to_local_shards[config.name]
        for old_shard, new_shard in zip(collection.local_shards(config.name), new, strict=True):
            rows = old_shard.tensor
            new_shard.tensor.copy_(rows if projection is None else collapse_table(rows, projection))
    return made


def _narrow(sharding: Any, dim: int) -> Any:
    """The plan of a table with the same rows in the same places, d wide."""
    shards = [
        ShardMetadata(
            shard_offsets=list(shard.shard_offsets),
            shard_sizes=[shard.shard_sizes[0], dim],
            placement=shard.placement,
        )
        for shard in sharding.sharding_spec.shards
    ]
    return replace(sharding, sharding_spec=EnumerableShardingSpec(shards))
