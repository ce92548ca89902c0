"""Whether a table's vectors are projected before they are exchanged, or after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def projects_on_shards(inner_dim: int, dim: int, shares: int) -> bool:
    """The rule: whichever sends fewer numbers; the d-wide form, where both send as many.

    Rows of all columns are projected where they are, and a vector is d wide. With the columns of W2
    in several shares, each has a d-wide part of the sum, so that a vector takes ``shares * dim``
    numbers if it is projected first, and ``inner_dim`` if it is projected where it arrives.

    Args:
        inner_dim, dim: k and d.
        shares: of the columns of W2.
    """
    return shares == 1 or shares * dim <= inner_dim


def column_shares(offsets: Iterable[Sequence[int]]) -> int:
    """In how many parts the columns of a table are.

    Args:
        offsets: of its shards, the first row and column of each.
    """
    return len({column for _, column in offsets})
