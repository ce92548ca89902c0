"""Vectors times their projections, wherever they are: one place in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mlet.distributed.projections import Projections


class Piece(NamedTuple):
    """Columns of neighbouring features with tables of one shape.

    Attributes:
        tables: each feature's, and the row of W1 that belongs to the first of its columns.
        projected: whether they are multiplied.
        widths: of a vector inside, and outside.
    """

    tables: tuple[tuple[str, int], ...]
    projected: bool
    widths: tuple[int, int]


class Layout(Protocol):
    """Where the vectors of each feature lie."""

    pieces: Sequence[Piece]

    def split(self, tensor: Tensor, *, inside: bool) -> list[Tensor]:
        """Of each piece the vectors (B, F, width)."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """All of them again."""


class Columns:
    """(B, Σ width): a feature has the same columns in every row."""

    def __init__(self, features: Sequence[Piece]) -> None:
        alike = groupby(features, lambda piece: piece[1:])
        self.pieces: Sequence[Piece] = [
            Piece(tuple(chain(*(piece.tables for piece in pieces))), *kind)
            for kind, pieces in alike
        ]

    def split(self, tensor: Tensor, *, inside: bool) -> list[Tensor]:
        """Of each piece the vectors (B, F, width)."""
        widths = [piece.widths[not inside] for piece in self.pieces]
        sizes = [w * len(p.tables) for w, p in zip(widths, self.pieces, strict=True)]
        parts = tensor.split(sizes, dim=1)
        rows = len(tensor)
        return [
            part.reshape(rows, len(piece.tables), width)
            for part, piece, width in zip(parts, self.pieces, widths, strict=True)
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """All of them again."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)


class Segments:
    """Features with rows of their own: one vector after the other, rank after rank, feature after
    feature."""

    def __init__(self, features: Sequence[Piece], rows: Sequence[Sequence[int]]) -> None:
        """``rows`` of each feature from each rank."""
        ranks = list(zip(*rows, strict=True))
        self.pieces: Sequence[Piece] = [piece for _ in ranks for piece in features]
        self.rows = list(chain(*ranks))

    def split(self, tensor: Tensor, *, inside: bool) -> list[Tensor]:
        """Of each piece the vectors (B, F, width)."""
        widths = [piece.widths[not inside] for piece in self.pieces]
        sizes = [rows * width for rows, width in zip(self.rows, widths, strict=True)]
        parts = zip(tensor.split(sizes), self.rows, widths, strict=True)
        return [part.reshape(rows, 1, width) for part, rows, width in parts]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """All of them again."""
        return torch.cat([part.reshape(-1) for part in parts])


def project(
    wide: Tensor,
    layout: Layout,
    projections: Projections,
    tables: Sequence[str],
    share: float = 1.0,
) -> Tensor:
    """The vectors outside; in the backward pass the projections are stepped.

    Args:
        wide: vectors as the layout has them inside; what is not projected passes.
        layout: of them.
        projections: of the collection.
        tables: of all processes, whose vectors are projected at this place of the graph.
        share: of this process's gradients in those of all.
    """
    narrow: Tensor = _Projected.apply(  # type: ignore[no-untyped-call]
        wide, layout, projections, tables, share
    )
    return narrow


class _Projected(torch.autograd.Function):
    """It is in the graph of every process, of those too that have no shard: the exchange of
    gradients is of all."""

    @staticmethod
    def forward(
        ctx: Any,
        wide: Tensor,
        layout: Layout,
        projections: Projections,
        tables: Sequence[str],
        share: float,
    ) -> Tensor:
        blocks = layout.split(wide, inside=True) if layout.pieces else []
        weights = [
            projections.stacked(piece.tables, piece.widths[0]) if piece.projected else None
            for piece in layout.pieces
        ]
        ctx.layout, ctx.projections, ctx.tables, ctx.share = layout, projections, tables, share
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
        layout: Layout = ctx.layout
        gradients = _Gradients(ctx.projections.parameters, ctx.share)
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
                gradients.add(piece.tables, torch.einsum("bfk,bfd->fkd", block, part))
        ctx.projections.update(ctx.tables, gradients.found)
        back = layout.join(inside) if inside else torch.zeros_like(wide)
        return back, None, None, None, None


class _Gradients:
    """Of whole projections, of parts that are added up."""

    def __init__(self, parameters: Mapping[str, Tensor], share: float) -> None:
        self._parameters, self._share = parameters, share
        self.found: dict[str, Tensor] = {}

    def add(self, tables: Sequence[tuple[str, int]], parts: Tensor) -> None:
        """``parts`` (F × rows × d), each of a table's W1 from a row on."""
        for (table, first), part in zip(tables, parts, strict=True):
            if table not in self.found:
                self.found[table] = torch.zeros_like(self._parameters[table])
            self.found[table][first : first + len(part)].add_(part, alpha=self._share)
