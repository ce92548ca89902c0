"""Lookups of several fields in one table, of which the engine knows nothing.

To it they are one field of a longer batch: m fields of B rows are m·B rows, field after field. So
each distinct category is read, projected and updated once, whichever fields name it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlet.engine import Lookups, TableStack
from mlet.nn.field_tables import FieldTables

#: The values and offsets of a bag for each row.
_Bags = tuple[Tensor, Tensor]


def look_up_gathered(
    tables: FieldTables, columns: Tensor, bags: Sequence[_Bags], mean: Sequence[bool]
) -> Tensor:
    """Vectors (B, T, d) of T tables, by the engine."""
    vectors: Tensor = tables(Lookups.gather(columns, bags, mean))
    return vectors


def look_up_shared(
    table: FieldTables,
    columns: Tensor,
    bags: Sequence[_Bags],
    mean: Sequence[bool],
    names: Sequence[str],
    size: int,
    *,
    traced: bool,
) -> Tensor:
    """Vectors (B, m, d) of m fields that share a table.

    Args:
        table: the one.
        columns: (B × m₁), of the one-valued fields.
        bags: of the m₂ multi-valued ones.
        mean: of each of these whether it is averaged; the same of all.
        names: of the fields, for errors.
        size: n, of categories.
        traced: whether operations are traced or exported.

    Raises:
        IndexError: an id outside the table; names the field.
    """
    look_up = _by_torch if table.is_plain(traced) else _by_the_engine
    if traced:
        return look_up(table, columns, bags, mean, traced)
    try:
        return look_up(table, columns, bags, mean, traced)
    except IndexError:
        ids = [*columns.unbind(1), *(values for values, _ in bags)]
        for name, given in zip(names, ids, strict=True):
            wrong = given[(given < 0) | (given >= size)]
            if len(wrong):
                raise TableStack((name,), (size,)).no_such_id(0, int(wrong[0])) from None
        raise


def _by_the_engine(
    table: FieldTables, columns: Tensor, bags: Sequence[_Bags], mean: Sequence[bool], traced: bool
) -> Tensor:
    """The vectors, as those of one field."""
    rows, fields = columns.shape[0], columns.shape[1] + len(bags)
    vectors = look_up_gathered(table, *_one_field(columns, bags, mean))
    return vectors.reshape(fields, rows, vectors.shape[2]).transpose(0, 1)


def _one_field(
    columns: Tensor, bags: Sequence[_Bags], mean: Sequence[bool]
) -> tuple[Tensor, list[_Bags], list[bool]]:
    """The lookups of m fields as those of one, of m·B rows; as bags, if some are."""
    singles = columns.t().reshape(-1)
    if not bags:
        return singles.unsqueeze(1), [], []
    device = columns.device
    offsets, count = [torch.arange(len(singles), device=device)], len(singles)
    for values, ends in bags:
        offsets.append(ends[:-1].long() + count)
        count += len(values)
    offsets.append(torch.tensor([count], device=device))
    values = torch.cat([singles.long(), *(values.long() for values, _ in bags)])
    nothing = columns.new_empty(len(columns) * (columns.shape[1] + len(bags)), 0)
    # A bag of one is that one, averaged or not.
    return nothing, [(values, torch.cat(offsets))], [mean[0]]


def _by_torch(
    table: FieldTables, columns: Tensor, bags: Sequence[_Bags], mean: Sequence[bool], traced: bool
) -> Tensor:
    """The same by torch's operations alone."""
    parts = []
    if columns.shape[1]:
        vectors = table.plain(columns.reshape(-1, 1), [], [], traced=traced)
        parts.append(vectors.view(-1, columns.shape[1], vectors.shape[2]))
    for bag, average in zip(bags, mean, strict=True):
        parts.append(table.plain(columns[:, :0], [bag], [average], traced=traced))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
