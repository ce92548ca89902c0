"""The fields of a batch: what each is, how its values come, which share a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mlet.nn.compression import Compression
from mlet.nn.rare_rows import RareRows


@dataclass(frozen=True)
class Field:
    """One categorical field: its table's shape and how its values are pooled.

    Attributes:
        name: unique among the fields of a model.
        num_embeddings: number of categories n.
        dim: embedding dimension d.
        inner_dim: inner dimension k of a two-layer table; None for an ordinary one.
        multi_valued: whether a row holds a bag of categories rather than exactly one.
        pooling: ``"mean"`` or ``"sum"`` over a bag; an empty bag gives zeros.
        compression: another way to make the table smaller (`mlet.nn.compression`); None for none.
        shares: another field, in whose table this one is looked up, of the same n, d, k,
            compression and rare rows; None for a table of its own.
        rare: rows that its rare categories share; None where every category has its own.
    """

    name: str
    num_embeddings: int
    dim: int
    inner_dim: int | None = None
    multi_valued: bool = False
    pooling: Literal["mean", "sum"] = "mean"
    compression: Compression | None = None
    shares: str | None = None
    rare: RareRows | None = None


class Bags(NamedTuple):
    """The values of one multi-valued field for a batch of B rows, in torch's jagged form.

    ``values`` (V,) holds the categories of all bags end to end; bag b is
    ``values[offsets[b] : offsets[b + 1]]``; ``offsets`` is (B + 1,), its last entry V.
    """

    values: Tensor
    offsets: Tensor


def owners_of(fields: Sequence[Field]) -> dict[str, str]:
    """For each field the one whose table it has: itself, unless it shares another's.

    Raises:
        ValueError: names are repeated; or a field shares a table that is not there, or is of
            another shape, or pools its bags in another way.
    """
    by_name = {field.name: field for field in fields}
    names = [field.name for field in fields]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"field names must be unique; repeated: {', '.join(repeated)}")
    pooling: dict[str, str] = {}
    for field in fields:
        owner = by_name.get(field.shares or field.name)
        if owner is None or owner.shares is not None:
            own = ", ".join(other.name for other in fields if other.shares is None)
            raise ValueError(
                f"field {field.name!r} shares the table of {field.shares!r}, which has none of its "
                f"own; those that have are {own}"
            )
        for part in ("num_embeddings", "dim", "inner_dim", "compression", "rare"):
            mine, theirs = getattr(field, part), getattr(owner, part)
            if mine != theirs:
                raise ValueError(
                    f"field {field.name!r} shares the table of {owner.name!r}, but its {part} is "
                    f"{mine}, not {theirs}"
                )
        if field.multi_valued and pooling.setdefault(owner.name, field.pooling) != field.pooling:
            raise ValueError(
                f"field {field.name!r} shares the table of {owner.name!r}, but pools by "
                f"{field.pooling} where another field of it pools by {pooling[owner.name]}"
            )
    return {field.name: field.shares or field.name for field in fields}


def check_integers(what: str, given: Tensor) -> None:
    """Floats would be cut off, and lose ids above 2^24, or above 256 in bfloat16.

    Raises:
        TypeError: it is neither int32 nor int64.
    """
    if given.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{what} must be int32 or int64, got {given.dtype}")


def check_bags(name: str, bags: Bags, rows: int) -> None:
    """Refuse what is no bag for each of ``rows`` rows.

    Raises:
        TypeError, ValueError: it is not; names the field.
    """
    values, offsets = bags
    check_integers(f"field {name!r}: values", values)
    check_integers(f"field {name!r}: offsets", offsets)
    if values.dim() != 1 or offsets.shape != (rows + 1,):
        raise ValueError(
            f"field {name!r}: values and offsets have shapes {tuple(values.shape)} and "
            f"{tuple(offsets.shape)}; expected (V,) and ({rows + 1},), one more than the "
            f"{rows} rows"
        )
    if offsets[0] != 0 or offsets[-1] != len(values) or bool((offsets.diff() < 0).any()):
        raise ValueError(
            f"field {name!r}: offsets must rise from 0 to the number of values, {len(values)}"
        )
