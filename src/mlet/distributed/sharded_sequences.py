"""A two-layer collection that pools nothing, on many processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mlet.distributed.sequence_shardings import SEQUENCE_SHARDINGS
from mlet.distributed.sharded_factors import ShardedFactors, wide_parameters
from mlet.distributed.table_checks import check_tables, table_shapes
from mlet.errors import ConversionError
from mlet.nn.torchrec_collections import TwoLayerEmbeddingCollection

_BECAUSE = (
    "with shares of the columns of W2, all ids would go to each of them and a vector come from "
    "each, where row-wise sharding has one of either; and a copy of all rows on every process is "
    "what sharding is to spare"
)


class ShardedTwoLayerEmbeddingCollection(ShardedFactors, ShardedEmbeddingCollection):  # type: ignore[misc]
    """TorchRec's sharded collection of the k-wide tables W2, with projections W1 on the way out.

    As `ShardedTwoLayerEmbeddingBagCollection`, but that each vector that is asked for is projected
    on the shard and exchanged; with TorchRec's ``use_index_dedup``, each that a process asks for is
    so once, however often it occurs there (on a CPU too, where TorchRec's own has no kernel).

    Args:
        module: the collection.
        others: TorchRec's.

    Raises:
        ConversionError: a table cannot be sharded, or is not the same on all processes.
    """

    holder = "embeddings"

    def __init__(
        self, module: TwoLayerEmbeddingCollection, params: Any, env: Any, **others: Any
    ) -> None:
        check_tables(module, params, SEQUENCE_SHARDINGS, _BECAUSE)
        self._prepare(module, params, env, others)
        super().__init__(_wide(module), params, env, **others)
        self._finish(module)

    def create_embedding_sharding(
        self, sharding_type: str, sharding_infos: Any, **others: Any
    ) -> Any:
        """TorchRec's, d wide outside."""
        self._make_rules(sharding_infos)
        return SEQUENCE_SHARDINGS[sharding_type](self._projections, sharding_infos, **others)

    def embedding_configs(self) -> list[Any]:
        """TorchRec's, of the tables as they are served: d wide."""
        return self.narrow_configs()

    def input_dist(self, ctx: Any, features: Any) -> Any:
        """TorchRec's.

        Raises:
            ConversionError: there would be no gradients, and nobody would know.
        """
        own_batches = isinstance(features, KeyedJaggedTensor) and features.variable_stride_per_key()
        if own_batches and self._to().type == "cpu" and torch.is_grad_enabled():
            raise ConversionError(
                "features with batches of their own (VBE) have no gradients on a CPU, as TorchRec "
                "1.8.0 hands out their vectors; give all features one batch, or train on GPUs"
            )
        return super().input_dist(ctx, features)

    def _dedup_indices(self, ctx: Any, input_feature_splits: Any) -> list[Any]:
        if self._to().type != "cpu":
            kept: list[Any] = super()._dedup_indices(ctx, input_feature_splits)
            return kept
        made = []
        shardings = self._sharding_type_to_sharding.values()
        for features, sharding in zip(input_feature_splits, shardings, strict=True):
            counts = [table.num_features() for table in sharding.embedding_tables()]
            distinct, places = distinct_ids(features, counts)
            ctx.input_features.append(features)
            ctx.reverse_indices.append(places)
            made.append(distinct)
        return made

    @property
    def unsharded_module_type(self) -> type[TwoLayerEmbeddingCollection]:
        """What was sharded."""
        return TwoLayerEmbeddingCollection


def distinct_ids(features: Any, counts: Sequence[int]) -> tuple[Any, Tensor]:
    """Each id that is asked of a table once, as values of its first feature.

    Args:
        features: a KeyedJaggedTensor.
        counts: how many neighbouring features each table has.

    Returns:
        Features of as many rows with those ids; and where each value is found among them.
    """
    lengths, rows = torch.zeros_like(features.lengths()), features.stride()
    firsts = [0, *accumulate(counts)]
    ends = features.offset_per_key()
    ids, places, known = [], [], 0
    for first, end in pairwise(firsts):
        own, place = features.values()[ends[first] : ends[end]].unique(return_inverse=True)
        ids.append(own)
        places.append(place + known)
        lengths[first * rows : first * rows + 1] = len(own)
        known += len(own)
    made = KeyedJaggedTensor(features.keys(), torch.cat(ids), lengths=lengths)
    return made, torch.cat(places)


def _wide(module: TwoLayerEmbeddingCollection) -> EmbeddingCollection:
    """TorchRec's collection of the rows alone, without values; as wide as vectors are outside, to
    who asks it, and its tables as wide as each is."""
    configs = [replace(config, init_fn=None) for config in module.embedding_configs()]
    made = EmbeddingCollection(
        tables=configs,
        device=torch.device("meta"),
        need_indices=EmbeddingCollection.need_indices(module),
        use_gather_select=EmbeddingCollection.use_gather_select(module),
        use_gather_select_per_sharding=EmbeddingCollection.use_gather_select_per_sharding(module),
    )
    shapes = table_shapes(module)
    made._embedding_configs = [
        replace(config, embedding_dim=shapes[config.name][0][1]) for config in configs
    ]
    for name, (shape, _) in shapes.items():
        made.embeddings[name] = nn.Embedding(*shape, device="meta")
    wide_parameters(module, made.embeddings)
    return made
