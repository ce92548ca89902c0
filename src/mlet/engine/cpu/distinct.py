"""Numba kernels that tell the distinct ids of a batch, table by table."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlet.engine.cpu.compile import kernel


@kernel
def distinct_of_table(
    ids: Any, size: int, whole: bool, keys: Any, places: Any, rows: Any, slots: Any, touched: Any
) -> int:
    """One table's distinct ids in order of appearance, and each lookup's place among them.

    With ``whole`` all its ids are listed instead, and those that occur are marked. Ids are told
    apart by a hash table, ``keys`` and ``places``: a power of two that is twice as long as ``ids``.

    Returns how many rows there are, or −1 − the position of an id that is out of range.
    """
    if whole:
        for r in range(size):
            rows[r] = r
            touched[r] = False
        for i in range(len(ids)):
            x = ids[i]
            if x < 0 or x >= size:
                return -1 - i
            slots[i] = x
            touched[x] = True
        return size
    used = 2
    while used < 2 * len(ids):
        used *= 2
    keys[:used] = -1
    mask = used - 1
    count = 0
    for i in range(len(ids)):
        x = ids[i]
        if x < 0 or x >= size:
            return -1 - i
        h = (x * 0x9E3779B1 >> 12) & mask
        while keys[h] != x:
            if keys[h] == -1:
                keys[h] = x
                places[h] = count
                rows[count] = x
                touched[count] = True
                count += 1
                break
            h = (h + 1) & mask
        slots[i] = places[h]
    return count


@kernel
def hash_table(longest: int) -> Any:
    """Room to tell as many ids apart, small enough for the cache."""
    capacity = 2
    while capacity < 2 * longest:
        capacity *= 2
    return np.empty(capacity, np.int64), np.empty(capacity, np.int32)


@kernel
def list_of(
    which: Any,
    ids: Any,
    starts: Any,
    sizes: Any,
    whole: Any,
    rows: Any,
    touched: Any,
    slots: Any,
    counts: Any,
) -> int:
    """`distinct_of_table` of each table; its rows are put at ``rows[starts[t]:]``.

    Returns the position of an id that is out of range, or −1.
    """
    longest = 1
    for t in which:
        longest = max(longest, starts[t + 1] - starts[t])
    keys, places = hash_table(longest)
    for t in which:
        low, high = starts[t], starts[t + 1]
        count: int = distinct_of_table(
            ids[low:high], sizes[t], whole[t], keys, places, rows[low:], slots[low:high],
            touched[low:],
        )  # fmt: skip
        if count < 0:
            bad: int = low - 1 - count
            return bad
        counts[t] = count
    return -1


@kernel
def find_distinct_of_one(
    ids: Any, size: int, whole: bool, rows: Any, slots: Any, touched: Any
) -> int:
    """The same of a table by itself."""
    keys, places = hash_table(1 if whole else len(ids))
    count: int = distinct_of_table(ids, size, whole, keys, places, rows, slots, touched)
    return count


@kernel
def compact_of(
    which: Any,
    starts: Any,
    row_starts: Any,
    first_rows: Any,
    loose: Any,
    loose_touched: Any,
    rows: Any,
    touched: Any,
    slots: Any,
) -> None:
    """Close the gaps that `list_of` left, and count rows and slots within the stack."""
    for t in which:
        low = row_starts[t]
        for r in range(row_starts[t + 1] - low):
            rows[low + r] = loose[starts[t] + r] + first_rows[t]
            touched[low + r] = loose_touched[starts[t] + r]
        for i in range(starts[t], starts[t + 1]):
            slots[i] += low


@kernel
def add_up(counts: Any) -> None:
    """From how many there are of each, after a zero, to where each begins."""
    for t in range(1, len(counts)):
        counts[t] += counts[t - 1]


@kernel
def find_distinct_of(
    which: Any,
    ids: Any,
    starts: Any,
    sizes: Any,
    whole: Any,
    first_rows: Any,
    loose: Any,
    loose_touched: Any,
    row_starts: Any,
    rows: Any,
    touched: Any,
    slots: Any,
) -> int:
    """The distinct rows of all tables, one table's after another's, from ``row_starts[t]`` on.

    ``loose`` and ``loose_touched`` are room for as many ids as are looked up. Returns the position
    of an id that is out of range, or −1.
    """
    bad: int = list_of(
        which, ids, starts, sizes, whole, loose, loose_touched, slots, row_starts[1:]
    )
    if bad < 0:
        add_up(row_starts)
        compact_of(
            which, starts, row_starts, first_rows, loose, loose_touched, rows, touched, slots
        )
    return bad
