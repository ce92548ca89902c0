"""Numba kernels of the CPU backend.

All work table by table on the tables listed in ``which``, so that threads share nothing but what
they read: results do not depend on the number of threads. Rows are taken in blocks that stay in the
first-level cache: read (and widened to float32) once, used, and where they change written once.

Arrays are read by their full indices: a slice is a small object, and making one for each row costs
more than the row. A stack of ordinary tables passes an empty projection.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlet.engine.cpu.compile import fast_kernel, kernel
from mlet.engine.cpu.multiply import add_outer, add_product, product
from mlet.engine.cpu.prefetch import expect_row
from mlet.engine.cpu.rows import load_rows, store_row
from mlet.engine.rules import RuleName

#: Rows of a block: at k = 128, 16 KiB of float32.
BLOCK = 32

# Numba compiles plain numbers in.
_SGD, _ADAGRAD = int(RuleName.SGD), int(RuleName.ADAGRAD)
_ROWWISE_ADAGRAD = int(RuleName.ROWWISE_ADAGRAD)


@kernel
def _expect_rows(table: Any, rows: Any, low: int, end: int) -> None:
    """The next block's rows are wanted soon; none of a state that a rule does not have."""
    if table.shape[0] == 1:
        return
    for q in range(low, min(low + BLOCK, end)):
        expect_row(table, rows[q])


@fast_kernel
def embed_of(
    which: Any,
    rows: Any,
    row_starts: Any,
    slots: Any,
    starts: Any,
    bag: Any,
    offsets: Any,
    mean: Any,
    table: Any,
    half: bool,
    projection: Any,
    vectors: Any,
    out: Any,
) -> None:
    """Each distinct row's vector, then each output: a lookup's vector, or a pooled bag's.

    ``projection`` is T × k × d.
    """
    projected = projection.shape[0] > 0
    block = np.empty((BLOCK, table.shape[1]), np.float32)
    d = vectors.shape[1]
    for t in which:
        end = row_starts[t + 1]
        for low in range(row_starts[t], end, BLOCK):
            count = min(BLOCK, end - low)
            if projected:
                load_rows(table, rows, low, count, half, block, 0)
                product(block, 0, count, projection[t], vectors, low)
            else:
                load_rows(table, rows, low, count, half, vectors, low)
        begin, number = starts[t], bag[t]
        if number < 0:
            for b in range(out.shape[0]):
                place = slots[begin + b]
                for c in range(d):
                    out[b, t, c] = vectors[place, c]
            continue
        for b in range(out.shape[0]):
            first, last = offsets[number, b], offsets[number, b + 1]
            for c in range(d):
                out[b, t, c] = np.float32(0.0)
            for i in range(first, last):
                place = slots[begin + i]
                for c in range(d):
                    out[b, t, c] += vectors[place, c]
            if mean[t] and last > first:
                scale = np.float32(1.0) / np.float32(last - first)
                for c in range(d):
                    out[b, t, c] *= scale


@kernel
def sum_of_each(slots: Any, grad: Any, sums: Any) -> None:
    """`sum_gradients_of` one table of which every lookup is handed out: (V × d) to (R × d)."""
    sums[:] = np.float32(0.0)
    for i in range(len(slots)):
        place = slots[i]
        for c in range(sums.shape[1]):
            sums[place, c] += grad[i, c]


@fast_kernel
def sum_gradients_of(
    which: Any,
    row_starts: Any,
    slots: Any,
    starts: Any,
    bag: Any,
    offsets: Any,
    mean: Any,
    grad: Any,
    sums: Any,
) -> None:
    """Upstream gradients (B, T, d) summed over each distinct row's lookups."""
    d = sums.shape[1]
    for t in which:
        sums[row_starts[t] : row_starts[t + 1]] = np.float32(0.0)
        begin, number = starts[t], bag[t]
        if number < 0:
            for b in range(grad.shape[0]):
                place = slots[begin + b]
                for c in range(d):
                    sums[place, c] += grad[b, t, c]
            continue
        for b in range(grad.shape[0]):
            first, last = offsets[number, b], offsets[number, b + 1]
            averaged = mean[t] and last > first
            scale = np.float32(1.0) / np.float32(last - first) if averaged else np.float32(1.0)
            for i in range(first, last):
                place = slots[begin + i]
                for c in range(d):
                    sums[place, c] += scale * grad[b, t, c]


@kernel
def _transpose(matrix: Any, factor: Any, out: Any) -> None:
    """Its transpose, times a factor."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = matrix[j, i] * factor


@fast_kernel
def factor_gradients_of(
    which: Any,
    rows: Any,
    row_starts: Any,
    table: Any,
    half: bool,
    projection: Any,
    sums: Any,
    rows_grad: Any,
    projection_grad: Any,
) -> None:
    """``∂W2`` of the rows, and ``∂W1``; it and ``projection`` are T × k × d."""
    block = np.empty((BLOCK, table.shape[1]), np.float32)
    wide = np.empty((projection.shape[2], projection.shape[1]), np.float32)
    outer = np.empty_like(wide)
    for t in which:
        _transpose(projection[t], np.float32(1.0), wide)
        outer[:] = np.float32(0.0)
        for low in range(row_starts[t], row_starts[t + 1], BLOCK):
            count = min(BLOCK, row_starts[t + 1] - low)
            load_rows(table, rows, low, count, half, block, 0)
            product(sums, low, count, wide, rows_grad, low)
            add_outer(sums, low, count, block, outer)
        _transpose(outer, np.float32(1.0), projection_grad[t])


@fast_kernel
def _apply_rule(
    name: int, rows: Any, low: int, count: int, touched: Any, values: Any, grad: Any, lr: Any,
    decay: Any, eps: Any, beta1: Any, beta2: Any, first: Any, second: Any,
) -> None:  # fmt: skip
    """`mlet.engine.rules` for a block of rows (count × k) and their states."""
    width = values.shape[1]
    one = np.float32(1.0)
    for q in range(count):
        if not touched[low + q]:
            continue
        row = rows[low + q]
        if decay != 0:
            for j in range(width):
                grad[q, j] += decay * values[q, j]
        if name == _SGD:
            for j in range(width):
                values[q, j] -= lr * grad[q, j]
        elif name == _ADAGRAD:
            for j in range(width):
                first[row, j] += grad[q, j] * grad[q, j]
            for j in range(width):
                values[q, j] -= lr * grad[q, j] / (np.sqrt(first[row, j]) + eps)
        elif name == _ROWWISE_ADAGRAD:
            total = np.float32(0.0)
            for j in range(width):
                total += grad[q, j] * grad[q, j]
            first[row, 0] += total / np.float32(width)
            scale = lr / (np.sqrt(first[row, 0]) + eps)
            for j in range(width):
                values[q, j] -= scale * grad[q, j]
        else:
            for j in range(width):
                first[row, j] += (one - beta1) * (grad[q, j] - first[row, j])
                second[row, j] += (one - beta2) * (grad[q, j] * grad[q, j] - second[row, j])
                values[q, j] -= lr * first[row, j] / (np.sqrt(second[row, j]) + eps)


@fast_kernel
def update_of(
    which: Any,
    rows: Any,
    starts: Any,
    whose: Any,
    touched: Any,
    table: Any,
    half: bool,
    projection: Any,
    sums: Any,
    projection_grad: Any,
    name: int,
    lr: Any,
    decay: Any,
    eps: Any,
    beta1: Any,
    beta2: Any,
    first: Any,
    second: Any,
    seed: int,
) -> None:
    """Factor gradients and the rule in one pass over the rows; ``∂W1`` uses their old values.

    Piece p is ``rows[starts[p] : starts[p + 1]]``, of table ``whose[p]``. ``projection`` and
    ``projection_grad`` are T × k × d; either may be empty. A rule without a state passes one that
    is left alone.
    """
    width = table.shape[1]
    projected, asked = projection.shape[0] > 0, projection_grad.shape[0] > 0
    block = np.empty((BLOCK, width), np.float32)
    grad = np.empty((BLOCK, width), np.float32)
    # Plain SGD is one product more, of W1ᵀ times the step size.
    direct = projected and name == _SGD and decay == 0
    wide = np.empty((projection.shape[2], projection.shape[1]), np.float32)
    outer = np.empty_like(wide)
    for p in which:
        t, end = whose[p], starts[p + 1]
        if projected:
            _transpose(projection[t], -lr if direct else np.float32(1.0), wide)
        if asked:
            outer[:] = np.float32(0.0)
        _expect_rows(table, rows, starts[p], end)
        _expect_rows(first, rows, starts[p], end)
        _expect_rows(second, rows, starts[p], end)
        for low in range(starts[p], end, BLOCK):
            count = min(BLOCK, end - low)
            _expect_rows(table, rows, low + count, end)
            _expect_rows(first, rows, low + count, end)
            _expect_rows(second, rows, low + count, end)
            load_rows(table, rows, low, count, half, block, 0)
            if asked:
                add_outer(sums, low, count, block, outer)
            if direct:
                add_product(sums, low, count, wide, block)
            else:
                if projected:
                    product(sums, low, count, wide, grad, 0)
                else:
                    for q in range(count):
                        for j in range(width):
                            grad[q, j] = sums[low + q, j]
                _apply_rule(
                    name, rows, low, count, touched, block, grad, lr, decay, eps, beta1, beta2,
                    first, second,
                )  # fmt: skip
            for q in range(count):
                if touched[low + q]:
                    store_row(block, q, half, seed, table, rows[low + q])
        if asked:
            _transpose(outer, np.float32(1.0), projection_grad[t])
