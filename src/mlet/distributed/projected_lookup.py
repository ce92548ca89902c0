"""A shard's vectors, projected before they leave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchrec.distributed.embedding_lookup import (
    GroupedEmbeddingsLookup,
    GroupedPooledEmbeddingsLookup,
)

from mlet.distributed.projected_vectors import Columns, Layout, Piece, Segments, project
from mlet.distributed.projections import Projections


class ProjectedLookup(GroupedPooledEmbeddingsLookup):  # type: ignore[misc]
    """TorchRec's lookup of a shard's k-wide tables, whose pooled sums leave it d wide.

    Pooling and projection are both linear, so that which comes first is free, and a shard's part of
    a bag can be projected by itself; one of some columns of W2, by the rows of W1 that they meet.

    Args:
        projections: of the collection.
        tables: of all processes, that are sharded alike.
        options: TorchRec's.
    """

    def __init__(self, projections: Projections, tables: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._projections, self._tables = projections, projections.first(tables)
        self._features = _features(projections, self.grouped_configs)

    def forward(self, sparse_features: Any) -> Tensor:
        """Pooled vectors (B, Σ d); end to end, where features have batches of their own."""
        wide = super().forward(sparse_features)
        layout: Layout = Columns(self._features)
        if sparse_features.variable_stride_per_key():
            layout = Segments(self._features, sparse_features.stride_per_key_per_rank())
        return project(wide, layout, self._projections, self._tables)


class ProjectedSequenceLookup(GroupedEmbeddingsLookup):  # type: ignore[misc]
    """TorchRec's lookup of a shard's k-wide rows, which leave it d wide.

    Args:
        projections, tables, options: as of `ProjectedLookup`.
    """

    def __init__(self, projections: Projections, tables: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._projections, self._tables = projections, projections.first(tables)
        self._features = _features(projections, self.grouped_configs)

    def forward(self, sparse_features: Any) -> Tensor:
        """The vectors (d) of all values end to end, feature after feature."""
        wide = super().forward(sparse_features)
        counts = sparse_features.length_per_key() if self._features else []
        layout = Segments(self._features, [[count] for count in counts])
        return project(wide, layout, self._projections, self._tables)


def _features(projections: Projections, configs: Sequence[Any]) -> list[Piece]:
    return [
        Piece(
            ((table.name, table.local_metadata.shard_offsets[1]),),
            table.name in projections.on_shards,
            (table.local_cols, projections.outside(table)),
        )
        for config in configs
        for table in config.embedding_tables
        for _ in range(table.num_features())
    ]
