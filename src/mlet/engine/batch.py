"""What a batch asks of a stack of tables, and what it asks distinctly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TableStack:
    """Which rows of a stacked matrix are whose: T tables, one above the other.

    Attributes:
        names: the field of each table, for errors; "" for what is no field's.
        sizes: the number of categories of each.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def starts_in(self, rows: Tensor) -> tuple[int, ...]:
        """Where each table begins among ascending rows of the stack: T + 1 positions."""
        first_rows = torch.tensor(self.first_rows, device=rows.device)
        return tuple(torch.searchsorted(rows, first_rows).tolist())

    @property
    def first_rows(self) -> list[int]:
        """Where each table begins, and where the last one ends: T + 1 rows."""
        return list(accumulate(self.sizes, initial=0))

    def ids_of(self, lookups: Lookups, table: int) -> Tensor:
        """The ids that are looked up in one table.

        Raises:
            IndexError: one of them is outside it.
        """
        start, end = lookups.starts[table : table + 2]
        ids = lookups.ids[start:end]
        wrong = (ids < 0) | (ids >= self.sizes[table])
        if bool(wrong.any()):
            raise self.out_of_range(lookups, start + int(wrong.nonzero()[0]))
        return ids

    def out_of_range(self, lookups: Lookups, position: int) -> IndexError:
        """The error for the id at a position of ``lookups.ids``."""
        table = int(np.searchsorted(lookups.starts, position, side="right")) - 1
        return self.no_such_id(table, int(lookups.ids[position]))

    def no_such_id(self, table: int, wrong: int) -> IndexError:
        """The error for an id that a table does not have."""
        size = self.sizes[table]
        whose = f"field {self.names[table]!r}: " if self.names[table] else ""
        return IndexError(
            f"{whose}id {wrong} is outside its table "
            f"of {size} categories (valid ids: 0 to {size - 1})"
        )


@dataclass(frozen=True)
class Lookups:
    """The ids of a batch of B rows for T tables: V lookups, table after table.

    Attributes:
        ids: (V,) int64, each an id of its own table.
        starts: T + 1 positions in ``ids``: table t's are ``ids[starts[t]:starts[t + 1]]``.
        batch: B.
        offsets: for each table None, where every row has one id, or (B + 1,) int64: row b's bag
            is ``offsets[b]`` to ``offsets[b + 1]`` of the table's ids.
        mean: for each table, whether a bag is averaged rather than summed.
        each: the vector of each lookup by itself is asked for (V × d), of two-layer tables; what
            the others say of rows and bags is not.
    """

    ids: Tensor
    starts: tuple[int, ...]
    batch: int
    offsets: tuple[Tensor | None, ...]
    mean: tuple[bool, ...]
    each: bool = False

    @classmethod
    def gather(
        cls,
        columns: Tensor,
        bags: Sequence[tuple[Tensor, Tensor]] = (),
        mean: Sequence[bool] = (),
    ) -> Lookups:
        """From one-valued columns (B × T₁) and the ``(values, offsets)`` of T₂ bags."""
        batch, singles = columns.shape
        parts = [columns.t().reshape(-1), *(values for values, _ in bags)]
        lengths = [batch] * singles + [len(values) for values, _ in bags]
        return cls(
            ids=torch.cat([part.long() for part in parts]) if bags else parts[0].long(),
            starts=tuple(accumulate(lengths, initial=0)),
            batch=batch,
            offsets=(None,) * singles + tuple(offsets.long() for _, offsets in bags),
            mean=(False,) * singles + tuple(mean),
        )

    @classmethod
    def of_each(cls, ids: Tensor, starts: Sequence[int]) -> Lookups:
        """Of ids (V,) that are not pooled; where those of each of T tables begin: T + 1."""
        tables = len(starts) - 1
        return cls(
            ids.long(), tuple(starts), len(ids), (None,) * tables, (False,) * tables, each=True
        )

    def with_own_offsets(self) -> Lookups:
        """The same, with copies of the offsets: what they were, whoever changes the given ones."""
        if not self.has_bags:
            return self
        own = tuple(None if offsets is None else offsets.clone() for offsets in self.offsets)
        return replace(self, offsets=own)

    @property
    def has_bags(self) -> bool:
        """Whether any table pools."""
        return any(offsets is not None for offsets in self.offsets)

    def outputs(self) -> Tensor:
        """(V,): the row of the (B·T) × d output that each lookup goes to."""
        tables = len(self.offsets)
        rows = torch.arange(self.batch, device=self.ids.device)
        parts = [
            (rows if offsets is None else rows.repeat_interleave(offsets.diff())) * tables + table
            for table, offsets in enumerate(self.offsets)
        ]
        return torch.cat(parts)

    def masses(self, dtype: torch.dtype) -> Tensor | None:
        """(B, T): the sum of what the vectors of each output are multiplied by: of a bag that is
        summed its length, of an empty one 0; None where all are 1."""
        if not self.has_bags:
            return None
        columns = []
        for offsets, mean in zip(self.offsets, self.mean, strict=True):
            if offsets is None:
                columns.append(torch.ones(self.batch, dtype=dtype, device=self.ids.device))
            else:
                lengths = offsets.diff().to(dtype)
                columns.append(lengths.clamp(max=1.0) if mean else lengths)
        return torch.stack(columns, dim=1)

    def weights(self, dtype: torch.dtype) -> Tensor | None:
        """(V,): what each lookup's vector is multiplied by; None where all are 1."""
        if not any(self.mean):
            return None
        parts = []
        for table, (offsets, mean) in enumerate(zip(self.offsets, self.mean, strict=True)):
            length = self.starts[table + 1] - self.starts[table]
            if offsets is None or not mean:
                parts.append(torch.ones(length, dtype=dtype, device=self.ids.device))
            else:
                lengths = offsets.diff()
                parts.append((1.0 / lengths.to(dtype)).repeat_interleave(lengths))
        return torch.cat(parts)


@dataclass(frozen=True)
class Distinct:
    """The R distinct rows that V lookups ask for.

    Attributes:
        rows: (R,) int64 rows of the stacked matrix, table after table, each once.
        starts: T + 1 positions in ``rows``: where each table's begin.
        slots: (V,) for each lookup, the position of its row in ``rows``; int32 or int64.
        touched: (R,) bool; False for a row that is listed because its whole (small) table is, but
            that no lookup asks for. None where every row is asked for.
    """

    rows: Tensor
    starts: tuple[int, ...]
    slots: Tensor
    touched: Tensor | None = None


@dataclass(frozen=True)
class RowGradient:
    """Gradient of a stack's product, W2 · W1, in the rows that a batch touched.

    Attributes:
        rows: (R,) int64, as in `Distinct`.
        starts: T + 1 positions in ``rows``: where each table's begin.
        sums: (R × d): the sum of the upstream gradients of each row's lookups.
        touched: as in `Distinct`.
    """

    rows: Tensor
    starts: tuple[int, ...]
    sums: Tensor
    touched: Tensor | None = None

    def compact(self) -> RowGradient:
        """Without the rows that no lookup asked for."""
        if self.touched is None or bool(self.touched.all()):
            return RowGradient(self.rows, self.starts, self.sums)
        kept = torch.cat([self.touched.new_zeros(1), self.touched]).cumsum(0)
        starts = tuple(kept[list(self.starts)].tolist())
        return RowGradient(self.rows[self.touched], starts, self.sums[self.touched])

    def sorted(self) -> RowGradient:
        """With rows ascending; tables keep their segments, since their rows ascend already."""
        rows, order = torch.sort(self.rows)
        touched = None if self.touched is None else self.touched[order]
        return RowGradient(rows, self.starts, self.sums[order], touched)

    @staticmethod
    def merge(gradients: Sequence[RowGradient], stack: TableStack) -> RowGradient:
        """The sum of several, as of several backward passes before one step."""
        if len(gradients) == 1:
            return gradients[0]
        parts = [gradient.compact() for gradient in gradients]
        rows, slots = torch.unique(
            torch.cat([part.rows for part in parts]), sorted=True, return_inverse=True
        )
        values = torch.cat([part.sums for part in parts])
        sums = values.new_zeros(len(rows), values.shape[1]).index_add_(0, slots, values)
        return RowGradient(rows, stack.starts_in(rows), sums)
