"""Pooled sums of a shard, projected before they leave it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup

from mlet.distributed.projections import Projections


class _Piece(NamedTuple):
    """Columns of neighbouring features with tables of one shape.

    Attributes:
        tables: each feature's.
        projected: whether they have two layers.
        widths: of a vector inside, and outside.
    """

    tables: tuple[str, ...]
    projected: bool
    widths: tuple[int, int]


class _Layout(Protocol):
    """Where the vectors of each feature lie in a lookup's output."""

    pieces: Sequence[_Piece]

    def split(self, tensor: Tensor, *, inside: bool) -> list[Tensor]:
        """Of each piece the vectors (B, F, width)."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """All of them again."""


class _Columns:
    """(B, Σ width): a feature has the same columns in every row."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self.pieces = pieces

    def split(self, tensor: Tensor, *, inside: bool) -> list[Tensor]:
        widths = [piece.widths[not inside] for piece in self.pieces]
        sizes = [w * len(p.tables) for w, p in zip(widths, self.pieces, strict=True)]
        parts = tensor.split(sizes, dim=1)
        rows = len(tensor)
        return [
            part.reshape(rows, len(piece.tables), width)
            for part, piece, width in zip(parts, self.pieces, widths, strict=True)
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten(1) for part in parts], dim=1)


class _Segments:
    """Features with batches of their own: one vector after the other, rank after rank, feature
    after feature."""

    def __init__(self, features: Sequence[_Piece], rows: Sequence[Sequence[int]]) -> None:
        """``rows`` of each feature from each rank."""
        ranks = list(zip(*rows, strict=True))
        self.pieces: Sequence[_Piece] = [piece for _ in ranks for piece in features]
        self.rows = list(chain(*ranks))

    def split(self, tensor: Tensor, *, inside: bool) -> list[Tensor]:
        widths = [piece.widths[not inside] for piece in self.pieces]
        sizes = [rows * width for rows, width in zip(self.rows, widths, strict=True)]
        parts = zip(tensor.split(sizes), self.rows, widths, strict=True)
        return [part.reshape(rows, 1, width) for part, rows, width in parts]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.reshape(-1) for part in parts])


class ProjectedLookup(GroupedPooledEmbeddingsLookup):  # type: ignore[misc]
    """TorchRec's lookup of a shard's k-wide tables, whose pooled sums leave it d wide.

    Pooling and projection are both linear, so that which comes first is free, and a shard's part of
    a bag can be projected by itself.

    Args:
        projections: of the collection.
        tables: of all processes, that are sharded alike.
        options: TorchRec's.
    """

    def __init__(self, projections: Projections, tables: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self._projections, self._tables = projections, tuple(tables)
        self._features = [
            _Piece((table.name,), table.name in projections.parameters, (inside, outside))
            for config in self.grouped_configs
            for table in config.embedding_tables
            for inside, outside in [(table.local_cols, projections.widths[table.name])]
            for _ in range(table.num_features())
        ]
        alike = groupby(self._features, lambda piece: piece[1:])
        self._pieces = [
            _Piece(tuple(chain(*(piece.tables for piece in pieces))), *kind)
            for kind, pieces in alike
        ]

    def forward(self, sparse_features: Any) -> Tensor:
        """Pooled vectors (B, Σ d); end to end, where features have batches of their own."""
        wide = super().forward(sparse_features)
        layout: _Layout = _Columns(self._pieces)
        if sparse_features.variable_stride_per_key():
            layout = _Segments(self._features, sparse_features.stride_per_key_per_rank())
        narrow: Tensor = _Projected.apply(  # type: ignore[no-untyped-call]
            wide, layout, self._projections, self._tables
        )
        return narrow


class _Projected(torch.autograd.Function):
    """Vectors of the shard times the projections; in its backward pass the projections are stepped.

    It is in the graph of every process, of those too that have no shard: the exchange of gradients
    is of all.
    """

    @staticmethod
    def forward(
        ctx: Any, wide: Tensor, layout: _Layout, projections: Projections, tables: Sequence[str]
    ) -> Tensor:
        blocks = layout.split(wide, inside=True) if layout.pieces else []
        weights = [
            projections.stacked(piece.tables) if piece.projected else None
            for piece in layout.pieces
        ]
        ctx.layout, ctx.projections, ctx.tables = layout, projections, tables
        ctx.empty = not blocks
        ctx.save_for_backward(wide, *(weight for weight in weights if weight is not None))
        if not blocks:
            return wide.clone()
        return layout.join(
            [
                block if weight is None else torch.einsum("bfk,fkd->bfd", block, weight)
                for block, weight in zip(blocks, weights, strict=True)
            ]
        )

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (narrow,) = upstream
        wide, *weights = ctx.saved_tensors
        layout: _Layout = ctx.layout
        gradients: dict[str, Tensor] = {}
        inside = []
        if not ctx.empty:
            parts = layout.split(narrow, inside=False)
            blocks, left = layout.split(wide, inside=True), iter(weights)
            for piece, block, part in zip(layout.pieces, blocks, parts, strict=True):
                if not piece.projected:
                    inside.append(part)
                    continue
                weight = next(left)
                inside.append(torch.einsum("bfd,fkd->bfk", part, weight))
                for table, own in zip(
                    piece.tables, torch.einsum("bfk,bfd->fkd", block, part), strict=True
                ):
                    gradients[table] = gradients[table] + own if table in gradients else own
        ctx.projections.update(ctx.tables, gradients)
        return (layout.join(inside) if inside else torch.zeros_like(wide)), None, None, None
