"""TorchRec's shardings of bags, with tables that are k wide inside and d wide outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torchrec.distributed.sharding.cw_sharding import CwPooledEmbeddingSharding
from torchrec.distributed.sharding.grid_sharding import GridPooledEmbeddingSharding
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingSharding
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.distributed.sharding.twrw_sharding import TwRwPooledEmbeddingSharding
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import PoolingType

from mlet.distributed.column_joins import JoinedColumns, Shared
from mlet.distributed.projected_lookup import ProjectedLookup
from mlet.distributed.projections import Projections

# What a sharding tells its output's exchange is d wide, and that is all that is overridden but for
# the lookup, and what is made of parts of vectors; ids and tables are dealt out by TorchRec.


class _Narrow:
    """What all have in common.

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
        return [self._projections.outside(table) for table, _ in _features(configs)]

    def _own_configs(self) -> Sequence[Any]:
        """Of the tables of which this process has something."""
        own: Sequence[Any] = vars(self)["_grouped_embedding_configs"]
        return own

    def _all_configs(self) -> Iterable[Any]:
        """Of all tables, in the order of what arrives."""
        return self._own_configs()

    def embedding_dims(self) -> list[int]:
        """d of every feature."""
        return self._narrow(self._all_configs())

    def averaged(self) -> list[bool]:
        """Of every feature, whether parts of its bags are summed here and divided at the end."""
        return [self._averages(table) for table, _ in _features(self._all_configs())]

    def _averages(self, table: Any) -> bool:
        return self.kind is not None and table.pooling == PoolingType.MEAN

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


class _ByProcess(_Narrow):
    """Of tables that are each on some processes."""

    _grouped_embedding_configs_per_rank: list[Any]

    def _dim_sum_per_rank(self) -> list[int]:
        return [sum(dims) for dims in self._emb_dim_per_rank_per_feature()]

    def _emb_dim_per_rank_per_feature(self) -> list[list[int]]:
        return [self._narrow(configs) for configs in self._grouped_embedding_configs_per_rank]

    def _all_configs(self) -> Iterable[Any]:
        return chain(*self._grouped_embedding_configs_per_rank)


class _ByMachine(_Narrow):
    """Of tables that are each on some machines, with rows on all processes of one."""

    kind = ShardingType.TABLE_ROW_WISE

    _grouped_embedding_configs_per_rank: list[Any]
    _grouped_embedding_configs_per_node: list[Any]
    _rank: int

    def _own_configs(self) -> Sequence[Any]:
        own: Sequence[Any] = self._grouped_embedding_configs_per_rank[self._rank]
        return own

    def _dim_sum_per_node(self) -> list[int]:
        return [sum(dims) for dims in self._emb_dim_per_node_per_feature()]

    def _emb_dim_per_node_per_feature(self) -> list[list[int]]:
        return [self._narrow(configs) for configs in self._grouped_embedding_configs_per_node]

    def _all_configs(self) -> Iterable[Any]:
        return chain(*self._grouped_embedding_configs_per_node)


class _ByColumns(_Narrow):
    """Of tables with columns in several places: parts of vectors arrive, and are put together."""

    def _shared(self) -> list[Shared]:
        found: dict[str, tuple[str, list[tuple[int, int]]]] = {}
        for place, (table, name) in enumerate(_features(self._all_configs())):
            first = table.local_metadata.shard_offsets[1]
            found.setdefault(name, (table.name, []))[1].append((first, place))
        return [
            Shared(name, table, tuple(place for _, place in sorted(parts)))
            for name, (table, parts) in found.items()
        ]

    def embedding_names(self) -> list[str]:
        """Of every feature, once."""
        return [feature.name for feature in self._shared()]

    def embedding_dims(self) -> list[int]:
        """d of every feature, once."""
        return [self._projections.widths[feature.table] for feature in self._shared()]

    def uncombined_embedding_names(self) -> list[str]:
        """The same: what is combined is combined before the collection sees it."""
        return self.embedding_names()

    def uncombined_embedding_dims(self) -> list[int]:
        """The same."""
        return self.embedding_dims()

    def embedding_shard_metadata(self) -> list[None]:
        """None of them is a part of vectors."""
        return [None for _ in self._shared()]

    def averaged(self) -> list[bool]:
        """Of every feature, once."""
        arriving = [table for table, _ in _features(self._all_configs())]
        return [self._averages(arriving[feature.places[0]]) for feature in self._shared()]

    def create_output_dist(self, device: torch.device | None = None) -> JoinedColumns:
        """TorchRec's, and what becomes of the parts."""
        theirs: Any = super()
        widths = self._narrow(self._all_configs())
        return JoinedColumns(
            theirs.create_output_dist(device),
            self._projections,
            self._shared(),
            widths,
            vars(self)["_pg"],
        )


class TableWise(_ByProcess, TwPooledEmbeddingSharding):  # type: ignore[misc]
    """Whole tables; an all-to-all of pooled vectors, d wide."""


class RowWise(_Narrow, RwPooledEmbeddingSharding):  # type: ignore[misc]
    """Rows of every table on every process; a reduce-scatter of their parts of a bag, d wide."""

    kind = ShardingType.ROW_WISE


class TableRowWise(_ByMachine, TwRwPooledEmbeddingSharding):  # type: ignore[misc]
    """Rows of a table on the processes of one machine; a reduce-scatter within it, then an
    all-to-all between machines, both d wide."""


class ColumnWise(_ByColumns, _ByProcess, CwPooledEmbeddingSharding):  # type: ignore[misc]
    """Columns of a table on some processes, anywhere or of one machine; an all-to-all of parts of
    vectors, d wide or as wide as the columns."""


class Grid(_ByColumns, _ByMachine, GridPooledEmbeddingSharding):  # type: ignore[misc]
    """Columns of a table on some machines, their rows on the processes of each; a reduce-scatter
    within a machine, then an all-to-all between them, of what `ColumnWise` exchanges."""

    def _init_combined_embeddings(self) -> None:
        """TorchRec's would say how columns are put together."""


def _features(configs: Iterable[Any]) -> list[tuple[Any, str]]:
    """Of each feature its table, or the part of it that is there, and its name."""
    return [
        (table, name)
        for config in configs
        for table in config.embedding_tables
        for name in table.embedding_names
    ]


#: By TorchRec's name.
SHARDINGS: dict[str, type[Any]] = {
    ShardingType.TABLE_WISE.value: TableWise,
    ShardingType.ROW_WISE.value: RowWise,
    ShardingType.TABLE_ROW_WISE.value: TableRowWise,
    ShardingType.COLUMN_WISE.value: ColumnWise,
    ShardingType.TABLE_COLUMN_WISE.value: ColumnWise,
    ShardingType.GRID_SHARD.value: Grid,
}
#: Those with columns in several places.
BY_COLUMNS = frozenset(name for name, made in SHARDINGS.items() if issubclass(made, _ByColumns))
