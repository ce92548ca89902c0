"""Deep hash embeddings (Kang et al. 2020, arXiv 2010.10784)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from mlet.nn.compression.base import COMPRESSIONS, Compression
from mlet.nn.compression.hashing import hash_ids
from mlet.nn.field_tables import ComputedTables

#: Values of a hash function before they are scaled to [−1, 1] (the paper's m).
_BUCKETS = 1_000_000


@COMPRESSIONS.register("deep_hash")
class DeepHash(Compression):
    """No table: an MLP decodes a fixed encoding of the category (sections 4.1 and 4.2).

    ``W[id] = MLP(e)`` with ``e_j = 2 h_j(id) / (m − 1) − 1``, uniform on [−1, 1], by ``hashes``
    hash functions; Mish between the layers. The paper's batch normalisation is left out, so that a
    category's vector does not depend on the batch.

    Attributes:
        hashes: length of the encoding (the paper: 1 024).
        widths: of the hidden layers.
    """

    name: Literal["deep_hash"] = "deep_hash"
    hashes: int = Setting(64, ge=1)
    widths: list[Annotated[int, Setting(ge=1)]] = Setting([64])

    def build(
        self, sizes: Mapping[str, int], dim: int, inner_dim: int | None, **options: Any
    ) -> DeepHashTables:
        """One decoder a field."""
        return DeepHashTables(sizes, dim, self.hashes, self.widths)


class DeepHashTables(ComputedTables):
    """A decoder for each field; encodings are computed from ids and seeds, never stored."""

    def __init__(self, sizes: Mapping[str, int], dim: int, hashes: int, widths: list[int]) -> None:
        super().__init__(sizes)
        self.hashes = hashes
        self.decoders = nn.ModuleList()
        for _ in sizes:
            layers: list[nn.Module] = []
            for inputs, outputs in pairwise([hashes, *widths, dim]):
                layers += [nn.Linear(inputs, outputs), nn.Mish()]
            self.decoders.append(nn.Sequential(*layers[:-1]))

    def vectors(self, name: str, ids: Tensor) -> Tensor:
        """The decoded encodings, (U, d)."""
        seeds = torch.arange(self.hashes, device=ids.device) + self.seeds[name] * self.hashes
        hashed = hash_ids(ids.unsqueeze(1), seeds, _BUCKETS)
        dtype = next(self.parameters()).dtype
        decoder = self.decoders[self.stack.names.index(name)]
        decoded: Tensor = decoder(hashed.to(dtype) * (2 / (_BUCKETS - 1)) - 1)
        return decoded

    def parts(self, name: str) -> dict[str, Tensor]:
        """The decoder's weights."""
        return dict(self.decoders[self.stack.names.index(name)].named_parameters())
