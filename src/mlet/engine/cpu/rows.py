"""Rows of float32 or 16-bit tables as the kernels see them: float32.

16-bit tables come as their raw bits (uint16); ``half`` tells float16 from bfloat16. What a kernel
is compiled to follows from the array's dtype, so float32 tables pay nothing for the others.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import overload

from mlet.engine.cpu.compile import kernel


def load_rows(table: Any, rows: Any, low: int, count: int, half: bool, out: Any, at: int) -> None:
    """Widen ``table[rows[low : low + count]]`` to float32, into ``out[at : at + count]``."""


@overload(load_rows)
def _load_overload(
    table: Any, rows: Any, low: Any, count: Any, half: Any, out: Any, at: Any
) -> Any:
    if table.dtype == numba.float32:

        def load(table: Any, rows: Any, low: Any, count: Any, half: Any, out: Any, at: Any) -> None:
            for q in range(count):
                row = rows[low + q]
                for j in range(table.shape[1]):
                    out[at + q, j] = table[row, j]

    else:

        def load(table: Any, rows: Any, low: Any, count: Any, half: Any, out: Any, at: Any) -> None:
            bits = out.view(np.uint32)
            for q in range(count):
                row = rows[low + q]
                if half:
                    for j in range(table.shape[1]):
                        x = np.uint32(table[row, j])
                        special = (x & np.uint32(0x7C00)) == np.uint32(0x7C00)  # NaN or infinite
                        wide = ((x & np.uint32(0x8000)) << 16) | ((x & np.uint32(0x7FFF)) << 13)
                        bits[at + q, j] = wide | (
                            np.uint32(0x7F800000) if special else np.uint32(0)
                        )
                    for j in range(table.shape[1]):
                        out[at + q, j] *= np.float32(2.0**112)
                else:
                    for j in range(table.shape[1]):
                        bits[at + q, j] = np.uint32(table[row, j]) << 16

    return load


@kernel
def _noise(seed: int, row: int, column: int) -> Any:
    """32 random bits for an element: murmur3's finaliser over its coordinates."""
    x = np.uint32(seed) ^ (np.uint32(row) * np.uint32(0x9E3779B1))
    x = (x + np.uint32(column) * np.uint32(0x85EBCA77)) & np.uint32(0xFFFFFFFF)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def store_row(values: Any, at: int, half: bool, seed: int, table: Any, row: int) -> None:
    """Put ``values[at]`` back as a row; into 16 bits with stochastic rounding
    (`mlet.engine.rounding`)."""


@overload(store_row)
def _store_overload(values: Any, at: Any, half: Any, seed: Any, table: Any, row: Any) -> Any:
    if table.dtype == numba.float32:

        def store(values: Any, at: Any, half: Any, seed: Any, table: Any, row: Any) -> None:
            for j in range(table.shape[1]):
                table[row, j] = values[at, j]

    else:

        def store(values: Any, at: Any, half: Any, seed: Any, table: Any, row: Any) -> None:
            bits = values.view(np.uint32)
            exponent = np.uint32(0x7F800000)
            for j in range(table.shape[1]):
                special = (bits[at, j] & exponent) == exponent  # NaN or infinite: no noise
                noise = np.uint32(0) if special else _noise(seed, row, j)
                if half:
                    if special:
                        x = bits[at, j]
                        sign = np.uint16((x >> np.uint32(16)) & np.uint32(0x8000))
                        mantissa = x & np.uint32(0x007FFFFF)
                        table[row, j] = sign | np.uint16(0x7C00 if mantissa == 0 else 0x7E00)
                    else:
                        values[at, j] *= np.float32(2.0**-112)
                        x = bits[at, j] + (noise & np.uint32(0x1FFF))
                        sign = np.uint16((x >> np.uint32(16)) & np.uint32(0x8000))
                        x = (x & np.uint32(0x7FFFFFFF)) >> np.uint32(13)
                        table[row, j] = sign | np.uint16(min(x, np.uint32(0x7C00)))
                else:
                    x = bits[at, j] + (noise & np.uint32(0xFFFF))
                    table[row, j] = np.uint16(x >> np.uint32(16))

    return store
