"""What a field embedding needs of the tables of some of its fields, however they are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mlet.engine import Lookups, TableStack
from mlet.nn.factored import Factors
from mlet.nn.plain_lookups import IdBounds, pool
from mlet.table_files import TableFiles, current_files

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
        files: where tables lie that are not in memory; None if they are.
    """

    files: TableFiles | None = None

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.stack = TableStack(tuple(sizes), tuple(sizes.values()))
        self.seeds = {name: place for place, name in enumerate(sizes)}
        self.bounds = IdBounds(self.stack)
        self.files = current_files()

    def is_plain(self, traced: bool) -> bool:
        """Whether to be looked up with `plain`, by torch's operations alone, not with `forward`.

        That is where operations are traced or exported, and where there is nothing to gain from
        knowing the distinct categories of a batch.
        """
        return traced

    def plain(
        self,
        columns: Tensor,
        bags: Sequence[tuple[Tensor, Tensor]],
        mean: Sequence[bool],
        *,
        traced: bool,
    ) -> Tensor:
        """As `forward`: (B, T, d), of what `Lookups.gather` takes, T₁ columns and T₂ bags.

        Raises:
            IndexError: an id outside its table, unless ``traced``.
        """
        singles = columns.shape[1]
        parts = []
        if singles:
            checked = self.checked(columns, 0, traced=traced)
            parts.append(self.plain_vectors(checked, 0))
        for place, ((values, offsets), average) in enumerate(
            zip(bags, mean, strict=True), start=singles
        ):
            checked = self.checked(values.unsqueeze(1), place, traced=traced)
            vectors = self.plain_vectors(checked, place).squeeze(1)
            parts.append(pool(vectors, offsets, mean=average).unsqueeze(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def checked(self, ids: Tensor, first: int, *, traced: bool) -> Tensor:
        """The ids (N × U) of the U tables from ``first`` on; see `IdBounds.check`."""
        return self.bounds.check(ids, first, traced=traced)

    @abstractmethod
    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """The vectors (N, U, d) of ids (N × U), all valid, of the U tables from ``first`` on."""

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

    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """Computed table by table."""
        names = self.stack.names[first : first + ids.shape[1]]
        columns = ids.unbind(1)
        return torch.stack([self.vectors(n, c) for n, c in zip(names, columns, strict=True)], dim=1)

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
