"""TorchRec's shardings of bags, with tables that are k wide inside and d wide outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingSharding
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.distributed.sharding.twrw_sharding import TwRwPooledEmbeddingSharding
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import PoolingType

from mlet.distributed.projected_lookup import ProjectedLookup
from mlet.distributed.projections import Projections

# What a sharding tells its output's exchange is d wide, and that is all that is overridden but for
# the lookup; ids and tables are dealt out by TorchRec.


class _Narrow:
    """What the three have in common.

    Args:
        projections: of the collection.
        sharding_infos, others: TorchRec's.
    """

    #: Given to the lookup, which then pools means by sums.
    kind: ShardingType | None = None

    def __init__(self, projections: Projections, sharding_infos: Any, *others: Any, **more: Any):
        self._projections = projections
        self._all_tables = [info.embedding_config.name for info in sharding_infos]
        super().__init__(sharding_infos, *others, **more)  # type: ignore[call-arg]

    def _narrow(self, configs: Iterable[Any]) -> list[int]:
        """What the vectors of each feature are wide outside."""
        return [
            self._projections.widths[table.name]
            for config in configs
            for table in config.embedding_tables
            for _ in range(table.num_features())
        ]

    def _own_configs(self) -> Sequence[Any]:
        """Of the tables of which this process has something."""
        own: Sequence[Any] = vars(self)["_grouped_embedding_configs"]
        return own

    def _all_configs(self) -> Iterable[Any]:
        """Of all tables, in the order of the output."""
        return self._own_configs()

    def embedding_dims(self) -> list[int]:
        """d of every feature."""
        return self._narrow(self._all_configs())

    def averaged(self) -> list[bool]:
        """Of every feature, whether parts of its bags are summed here and divided at the end."""
        return [
            self.kind is not None and table.pooling == PoolingType.MEAN
            for config in self._all_configs()
            for table in config.embedding_tables
            for _ in range(table.num_features())
        ]

    def create_lookup(
        self,
        device: torch.device | None = None,
        fused_params: dict[str, Any] | None = None,
        feature_processor: Any = None,
    ) -> ProjectedLookup:
        """TorchRec's with projections."""
        own = vars(self)
        return ProjectedLookup(
            self._projections,
            self._all_tables,
            grouped_configs=self._own_configs(),
            pg=own["_pg"],
            device=device if device is not None else own["_device"],
            feature_processor=feature_processor,
            sharding_type=self.kind,
            env=own["_env"],
        )


class TableWise(_Narrow, TwPooledEmbeddingSharding):  # type: ignore[misc]
    """Whole tables; an all-to-all of pooled vectors, d wide."""

    def _dim_sum_per_rank(self) -> list[int]:
        return [sum(dims) for dims in self._emb_dim_per_rank_per_feature()]

    def _emb_dim_per_rank_per_feature(self) -> list[list[int]]:
        return [self._narrow(configs) for configs in self._grouped_embedding_configs_per_rank]

    def _all_configs(self) -> Iterable[Any]:
        return chain(*self._grouped_embedding_configs_per_rank)


class RowWise(_Narrow, RwPooledEmbeddingSharding):  # type: ignore[misc]
    """Rows of every table on every process; a reduce-scatter of their parts of a bag, d wide."""

    kind = ShardingType.ROW_WISE


class TableRowWise(_Narrow, TwRwPooledEmbeddingSharding):  # type: ignore[misc]
    """Rows of a table on the processes of one machine; a reduce-scatter within it, then an
    all-to-all between machines, both d wide."""

    kind = ShardingType.TABLE_ROW_WISE

    def _own_configs(self) -> Sequence[Any]:
        own: Sequence[Any] = self._grouped_embedding_configs_per_rank[self._rank]
        return own

    def _dim_sum_per_node(self) -> list[int]:
        return [sum(dims) for dims in self._emb_dim_per_node_per_feature()]

    def _emb_dim_per_node_per_feature(self) -> list[list[int]]:
        return [self._narrow(configs) for configs in self._grouped_embedding_configs_per_node]

    def _all_configs(self) -> Iterable[Any]:
        return chain(*self._grouped_embedding_configs_per_node)


#: By TorchRec's name.
SHARDINGS: dict[str, type[Any]] = {
    ShardingType.TABLE_WISE.value: TableWise,
    ShardingType.ROW_WISE.value: RowWise,
    ShardingType.TABLE_ROW_WISE.value: TableRowWise,
}
