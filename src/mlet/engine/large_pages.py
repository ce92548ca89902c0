"""Tables in large pages of memory.

Rows of a table are read from anywhere. With pages of 4 KiB a processor finds few of their places in
its list of translations, and each row waits for a walk through the page table before it waits for
memory. Linux keeps memory in pages of 2 MiB for who asks, where ``transparent_hugepage`` is
``madvise``, as most distributions have it; it asks for nothing elsewhere.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_PAGE = mmap.PAGESIZE
#: Below some of these, a table's places are all known at once anyway.
_LARGE = 2 << 20
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)


def empty_rows(
    shape: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """`torch.empty`, of a table whose rows will be read from anywhere.

    Memory gets its pages when it is first written to: what was filled before has small ones.
    """
    table = torch.empty(tuple(shape), dtype=dtype, device=device)
    size = table.numel() * table.element_size()
    if _ADVICE is None or type(table) is not Tensor or table.device.type != "cpu":
        return table
    start = -(-table.data_ptr() // _PAGE) * _PAGE
    length = (table.data_ptr() + size - start) // _PAGE * _PAGE
    if length >= 2 * _LARGE:
        # Refused, memory is as it ever was.
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_ADVICE)
        )
    return table
