"""Sharded two-layer collections to TorchRec's own sharded collections, shard by shard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from mlet.distributed.narrow_plans import narrow_plan
from mlet.distributed.sharded_factors import ShardedFactors
from mlet.distributed.table_checks import WIDTH_STEP
from mlet.errors import ConversionError
from mlet.nn.factored import collapse_table

#: Rows of a table by columns that processes add up at a time.
_ROWS_AT_ONCE = 1 << 16


def sharded_collections(model: nn.Module) -> dict[str, Any]:
    """Those in a model, by qualified name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, ShardedFactors)
    }


def collapse_sharded(model: nn.Module) -> nn.Module:
    """The model with TorchRec's own collections in the place of two-layer ones, on every process.

    A process multiplies what it has of the rows, and they stay where they are; of a table by
    columns the products are added up, and then are sharded as `narrow_plan` says. The tables'
    optimizers start afresh.

    Raises:
        ConversionError: FBGEMM's kernels have no tables of that width.
    """
    found = sharded_collections(model)
    for name, collection in found.items():
        for config in collection.narrow_configs():
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
def _collapsed(collection: Any) -> Any:
    group = collection._env.process_group
    configs = collection.narrow_configs()
    plan = {
        config.name: narrow_plan(
            config,
            collection.module_sharding_plan[config.name],
            group.size(),
            factored=config.name in collection.projections,
        )
        for config in configs
    }
    made = _unfilled(collection, configs, plan).train(collection.training)
    for config in configs:
        name = config.name
        projection = collection.projections.get(name)
        old, new = collection.local_shards(name), made._model_parallel_name_to_local_shards[name]
        same = plan[name].sharding_type == collection.module_sharding_plan[name].sharding_type
        if not same:
            shards = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in new}
            if projection is None:
                projection = torch.eye(config.embedding_dim, device=collection._to())
            _add_up(old, projection, plan[name], shards, group)
            continue
        for old_shard, new_shard in zip(old, new, strict=True):
            rows = old_shard.tensor
            new_shard.tensor.copy_(rows if projection is None else collapse_table(rows, projection))
    return made


def _unfilled(collection: Any, configs: list[Any], plan: Any) -> Any:
    """TorchRec's own under a plan, with whatever values."""
    given, meta = collection.given, torch.device("meta")
    options = {key: given.get(key) for key in ("fused_params", "qcomm_codecs_registry")}
    plain: nn.Module
    sharder: Any
    if hasattr(collection, "embedding_bag_configs"):
        plain = EmbeddingBagCollection(configs, is_weighted=collection._is_weighted, device=meta)
        sharder = EmbeddingBagCollectionSharder(**options)
    else:
        plain = EmbeddingCollection(
            configs,
            device=meta,
            need_indices=collection._need_indices,
            use_gather_select=collection._use_gather_select,
            use_gather_select_per_sharding=collection._use_gather_select_per_sharding,
        )
        # TorchRec finds distinct ids by a kernel that there is for GPUs only.
        distinct = collection._use_index_dedup and collection._to().type != "cpu"
        sharder = EmbeddingCollectionSharder(**options, use_index_dedup=distinct)
    return sharder.shard(plain, plan, collection._env, given.get("device"), collection.module_fqn)


def _add_up(old: Any, projection: Any, plan: Any, own: Any, group: dist.ProcessGroup) -> None:
    """Rows of a product, of parts by columns of W2 on all processes.

    Args:
        old: this process's shards of W2.
        projection: W1 (k × d).
        plan: of the product.
        own: this process's shards of the product, by their offsets.
        group: the processes.
    """
    for shard, rank in zip(plan.sharding_spec.shards, plan.ranks, strict=True):
        (first, _), (count, dim) = shard.shard_offsets, shard.shard_sizes
        for start in range(first, first + count, _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, first + count)
            part = projection.new_zeros(end - start, dim)
            for piece in old:
                _add_product(part, start, piece, projection)
            dist.reduce(part, dist.get_global_rank(group, rank), group=group)
            if group.rank() == rank:
                own[tuple(shard.shard_offsets)][start - first : end - first].copy_(part)


def _add_product(part: Tensor, start: int, piece: Any, projection: Tensor) -> None:
    """Add to rows from ``start`` on what a shard of W2 has of them."""
    row, column = piece.metadata.shard_offsets
    rows, columns = piece.metadata.shard_sizes
    low, high = max(start, row), min(start + len(part), row + rows)
    if low < high:
        inner = piece.tensor[low - row : high - row]
        part[low - start : high - start] += inner @ projection[column : column + columns]
