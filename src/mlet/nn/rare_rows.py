"""Rows that rare categories share: those seen least have none of their own.

Ids are in the order of training counts (`mlet.data.vocabulary`; in data that extends other data,
those of each part), so that where the rare ones begin is a single number, and nothing is stored for
them: training rows of each teach a row for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mlet.engine import TableStack
from mlet.nn.compression.hashing import hash_ids
from mlet.nn.plain_lookups import IdBounds


@dataclass(frozen=True)
class RareRows:
    """Of one field, ids 1 to ``own`` have rows of their own; id 0 and those above share.

    Attributes:
        own: how many categories have one.
        shared: rows of the others, by a hash; they come first.
    """

    own: int
    shared: int = 1

    def __post_init__(self) -> None:
        if self.own < 0 or self.shared < 1:
            raise ValueError(f"rare rows: {self.own} own and {self.shared} shared rows")

    @property
    def rows(self) -> int:
        """Of the field's table."""
        return self.own + self.shared


class _Field(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def num_embeddings(self) -> int: ...

    @property
    def multi_valued(self) -> bool: ...

    @property
    def rare(self) -> RareRows | None: ...

    @property
    def shares(self) -> str | None: ...


class RareMap:
    """Categories to rows, for all fields of a layer; where none has rare rows, nothing is done.

    Args:
        fields: in the layer's order.
    """

    def __init__(self, fields: Sequence[_Field]) -> None:
        self.is_needed = any(field.rare is not None for field in fields)
        self._fields = list(fields)
        rare = [field.rare or RareRows(field.num_embeddings - 1) for field in fields]
        # No buffers, as they are no weights: places in a hash, rows of their own, shared ones.
        # Fields that share a table have the places of the one whose it is.
        places = {field.name: place for place, field in enumerate(fields)}
        seeds = [places[field.shares or field.name] for field in fields]
        self._all = torch.tensor([seeds, [one.own for one in rare], [one.shared for one in rare]])
        columns = [place for place, field in enumerate(fields) if not field.multi_valued]
        self._columns = self._all[:, columns]
        self._bounds = IdBounds(_stack([fields[place] for place in columns]))
        self._each = {f.name: (p, IdBounds(_stack([f]))) for p, f in enumerate(fields)}

    def columns(self, ids: Tensor, *, traced: bool) -> Tensor:
        """Rows (B, F₁) of the ids of the one-valued fields.

        Raises:
            IndexError: an id outside its field's categories, unless ``traced``.
        """
        if not self.is_needed:
            return ids
        return _rows(self._bounds.check(ids, 0, traced=traced), self._columns)

    def values(self, name: str, ids: Tensor, *, traced: bool) -> Tensor:
        """Rows (V,) of the categories of one field. Raises as `columns`."""
        if not self.is_needed:
            return ids
        place, bounds = self._each[name]
        checked = bounds.check(ids.unsqueeze(1), 0, traced=traced)
        return _rows(checked, self._all[:, place : place + 1]).squeeze(1)

    def of(self, name: str) -> Tensor:
        """The row of every category of a field: (n,)."""
        size = next(f.num_embeddings for f in self._fields if f.name == name)
        return self.values(name, torch.arange(size), traced=False)


def _stack(fields: Sequence[_Field]) -> TableStack:
    return TableStack(tuple(f.name for f in fields), tuple(f.num_embeddings for f in fields))


def _rows(ids: Tensor, fields: Tensor) -> Tensor:
    """Rows of ids (… × F), by the fields' seeds, own and shared rows (3 × F)."""
    seeds, own, shared = fields.to(ids.device)
    rare = (ids == 0) | (ids > own)
    hashed = hash_ids(ids, seeds, shared)
    return torch.where(rare, hashed, ids + (shared - 1))
