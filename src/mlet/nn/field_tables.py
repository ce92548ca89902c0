"""What a field embedding needs of the tables of some of its fields, however they are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlet.engine import Lookups, TableStack
from mlet.nn.factored import Factors

#: Rows computed at once where a whole table is asked for.
_BLOCK_ROWS = 65_536


class FieldTables(nn.Module, ABC):
    """The tables of T fields with the same embedding dimension d.

    Args:
        sizes: number of categories n of each field, by name.

    Attributes:
        sizes: the same.
        stack: which ids are whose.
        seeds: of each field's hash functions, where a method has some.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.stack = TableStack(tuple(sizes), tuple(sizes.values()))
        self.seeds = {name: place for place, name in enumerate(sizes)}

    @abstractmethod
    def forward(self, lookups: Lookups) -> Tensor:
        """Embed a batch's ids: (B, T, d).

        Raises:
            IndexError: an id outside its table.
        """

    @abstractmethod
    def table(self, name: str) -> Tensor:
        """The n × d table that a field stands for: a copy."""

    def start_from(self, name: str, table: Tensor) -> None:
        """Let one field begin with a trained table (n × d).

        Raises:
            ValueError: these tables cannot hold one, or it is of another shape.
        """
        raise ValueError(f"field {name!r}: {type(self).__name__} cannot hold a trained table")

    def factors(self, name: str) -> Factors:
        """W2 (n × k) and W1 (k × d) of a two-layer field; of any other its table."""
        return Factors(self.table(name), None)

    @abstractmethod
    def parts(self, name: str) -> dict[str, Tensor]:
        """All that is one field's own, by name: views of the parameters and buffers it lies in."""

    def collapsed(self, name: str) -> dict[str, Tensor]:
        """What is kept of a field to serve it: tensors by name, ``weight`` alone for a table."""
        return {part: tensor.detach().clone() for part, tensor in self.parts(name).items()}

    @torch.no_grad()
    def load_collapsed(self, name: str, given: Mapping[str, Tensor]) -> None:
        """Take over what `collapsed` gave, of equal shapes.

        Raises:
            ValueError: a part is missing, unknown, or of another shape.
        """
        own = self.parts(name)
        for part, tensor in own.items():
            found = given.get(part)
            if found is None or found.shape != tensor.shape:
                shape = "none" if found is None else str(tuple(found.shape))
                raise ValueError(
                    f"{part} of field {name!r}: expected {tuple(tensor.shape)}, got {shape}"
                )
            tensor.copy_(found)
        unknown = sorted(set(given) - set(own))
        if unknown:
            raise ValueError(f"field {name!r}: unknown {', '.join(unknown)}")


class ComputedTables(FieldTables):
    """Tables whose rows are computed: each distinct category of a batch once, then pooled."""

    @abstractmethod
    def vectors(self, name: str, ids: Tensor) -> Tensor:
        """The embeddings (U, d) of some categories (U,) of a field."""

    @torch.no_grad()
    def table(self, name: str) -> Tensor:
        """All rows of a field, computed, a block at a time."""
        device = next(iter([*self.parameters(), *self.buffers()])).device
        blocks = torch.arange(self.sizes[name], device=device).split(_BLOCK_ROWS)
        return torch.cat([self.vectors(name, ids) for ids in blocks])

    def forward(self, lookups: Lookups) -> Tensor:
        """Embed a batch's ids: (B, T, d)."""
        parts = []
        for place, name in enumerate(self.sizes):
            distinct, inverse = self.stack.ids_of(lookups, place).unique(return_inverse=True)
            parts.append(self.vectors(name, distinct)[inverse])
        tables = len(self.sizes)
        if not lookups.has_bags:
            return torch.stack(parts, dim=1)
        values = torch.cat(parts)
        weights = lookups.weights(values.dtype)
        if weights is not None:
            values = values * weights.unsqueeze(1)
        pooled = values.new_zeros(lookups.batch * tables, values.shape[1])
        pooled = pooled.index_add(0, lookups.outputs(), values)
        return pooled.view(lookups.batch, tables, -1)
