"""What arrives of tables whose columns are in several places, put together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torchrec.distributed.comm_ops import get_gradient_division
from torchrec.distributed.embedding_sharding import BaseEmbeddingDist

from mlet.distributed.projected_vectors import Piece, Segments, project
from mlet.distributed.projections import Projections


class Shared(NamedTuple):
    """A feature, of whose vectors several parts arrive.

    Attributes:
        name: which its vectors go by.
        table: its own.
        places: of the parts among all that arrive, in the order of their columns.
    """

    name: str
    table: str
    places: tuple[int, ...]


class JoinedColumns(BaseEmbeddingDist):  # type: ignore[misc]
    """TorchRec's exchange; then each feature's vectors are made of their parts, d wide.

    Parts of vectors that were projected on the shards are sums, and are added up. Others stand
    side by side: those of an ordinary table are its vectors, and those of W2 are projected here.

    Args:
        exchange: TorchRec's.
        projections: of the collection.
        features: of all tables that are sharded alike.
        widths: of the parts that arrive, one after the other.
        group: the processes.
    """

    def __init__(
        self,
        exchange: Any,
        projections: Projections,
        features: Sequence[Shared],
        widths: Sequence[int],
        group: dist.ProcessGroup,
    ) -> None:
        super().__init__()
        self._exchange, self._projections, self._group = exchange, projections, group
        self._features, self._widths = list(features), list(widths)
        late = projections.last([feature.table for feature in features])
        self._late = [i for i, feature in enumerate(features) if feature.table in late]
        self._tables = list(dict.fromkeys(late))
        shapes = [projections.parameters[self._features[i].table].shape for i in self._late]
        self._pieces = [
            Piece(((self._features[i].table, 0),), True, (shape[0], shape[1]))
            for i, shape in zip(self._late, shapes, strict=True)
        ]

    def forward(self, local_embs: Tensor, sharding_ctx: Any = None) -> Any:
        """An awaitable of (B, Σ d); end to end, where features have batches of their own."""
        arriving = self._exchange(local_embs, sharding_ctx)
        rows = None
        if sharding_ctx is not None and sharding_ctx.variable_batch_per_feature:
            rows = list(sharding_ctx.batch_size_per_feature_pre_a2a)
            # From here on each feature is there once.
            sharding_ctx.batch_size_per_feature_pre_a2a = [
                rows[feature.places[0]] for feature in self._features
            ]
        arriving.callbacks.append(partial(self._join, rows))
        return arriving

    def _join(self, rows: Sequence[int] | None, arrived: Tensor) -> Tensor:
        if rows is None:
            parts = list(arrived.split(self._widths, dim=1))
        else:
            sizes = [count * width for count, width in zip(rows, self._widths, strict=True)]
            shapes = zip(arrived.split(sizes), rows, self._widths, strict=True)
            parts = [part.view(count, width) for part, count, width in shapes]
        made = [self._vectors(feature, parts) for feature in self._features]
        for place, vectors in zip(self._late, self._project(made), strict=True):
            made[place] = vectors
        if rows is None:
            return torch.cat(made, dim=1)
        return torch.cat([vectors.reshape(-1) for vectors in made])

    def _vectors(self, feature: Shared, parts: Sequence[Tensor]) -> Tensor:
        own = [parts[place] for place in feature.places]
        if feature.table in self._projections.on_shards:
            return own[0] if len(own) == 1 else torch.stack(own).sum(0)
        return torch.cat(own, dim=1)

    def _project(self, made: Sequence[Tensor]) -> list[Tensor]:
        if not self._late:
            return []
        wide = [made[place] for place in self._late]
        layout = Segments(self._pieces, [[len(vectors)] for vectors in wide])
        # Gradients that go through the exchange are divided by as much.
        share = 1 / self._group.size() if get_gradient_division() else 1.0
        narrow = project(layout.join(wide), layout, self._projections, self._tables, share)
        return [part.flatten(1) for part in layout.split(narrow, inside=False)]
