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


class _Projecting:
    """What both have in common.

    Args:
        projections: of the collection.
        tables: of all processes, that are sharded alike.
        options: TorchRec's.
    """

    grouped_configs: Sequence[Any]

    def __init__(self, projections: Projections, tables: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._projections, self._tables = projections, projections.first(tables)
        self._features = [
            Piece(
                ((table.name, table.local_metadata.shard_offsets[1]),),
                table.name in projections.on_shards,
                (table.local_cols, projections.outside(table)),
            )
            for config in self.grouped_configs
            for table in config.embedding_tables
            for _ in range(table.num_features())
        ]

    def _projected(self, wide: Tensor, layout: Layout) -> Tensor:
        return project(wide, layout, self._projections, self._tables)


class ProjectedLookup(_Projecting, GroupedPooledEmbeddingsLookup):  # type: ignore[misc]
    """TorchRec's lookup of a shard's k-wide tables, whose pooled sums leave it d wide.

    Pooling and projection are both linear, so that which comes first is free, and a shard's part of
    a bag can be projected by itself; one of some columns of W2, by the rows of W1 that they meet.
    """

    def forward(self, sparse_features: Any) -> Tensor:
        """Pooled vectors (B, Σ d); end to end, where features have batches of their own."""
        wide = super().forward(sparse_features)
        layout: Layout = Columns(self._features)
        if sparse_features.variable_stride_per_key():
            layout = Segments(self._features, sparse_features.stride_per_key_per_rank())
        return self._projected(wide, layout)


class ProjectedSequenceLookup(_Projecting, GroupedEmbeddingsLookup):  # type: ignore[misc]
    """TorchRec's lookup of a shard's k-wide rows, which leave it d wide."""

    def forward(self, sparse_features: Any) -> Tensor:
        """The vectors (d) of all values end to end, feature after feature."""
        wide = super().forward(sparse_features)
        counts = sparse_features.length_per_key() if self._features else []
        return self._projected(wide, Segments(self._features, [[count] for count in counts]))
