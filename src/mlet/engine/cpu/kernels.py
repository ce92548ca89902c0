"""Numba kernels of the CPU backend.

All work table by table on the tables listed in ``which``, so that threads share nothing but what
they read: results do not depend on the number of threads. Rows are taken in blocks that stay in the
first-level cache: read (and widened to float32) once, used, and where they change written once.

Projections are passed transposed (T × d × k), so that every inner loop runs along k. A stack of
ordinary tables passes an empty projection.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlet.engine.cpu.compile import fast_kernel, kernel
from mlet.engine.cpu.prefetch import expect_row
from mlet.engine.cpu.rows import load_row, store_row
from mlet.engine.rules import RuleName

#: Rows of a block: at k = 128, 16 KiB of float32.
BLOCK = 32

# Numba compiles plain numbers in.
_SGD, _ADAGRAD = int(RuleName.SGD), int(RuleName.ADAGRAD)
_ROWWISE_ADAGRAD = int(RuleName.ROWWISE_ADAGRAD)

_LANES = 4  # rows or directions combined in one pass: enough independent sums to hide latency


@fast_kernel
def _project(block: Any, count: int, projection: Any, out: Any) -> None:
    """``out = block @ projectionᵀ``: (count × k) by (d × k)."""
    d, k = projection.shape
    full = count - count % _LANES
    for c in range(d):
        w = projection[c]
        for q in range(0, full, _LANES):
            r0, r1, r2, r3 = block[q], block[q + 1], block[q + 2], block[q + 3]
            s0 = np.float32(0.0)
            s1 = np.float32(0.0)
            s2 = np.float32(0.0)
            s3 = np.float32(0.0)
            for j in range(k):
                s0 += r0[j] * w[j]
                s1 += r1[j] * w[j]
                s2 += r2[j] * w[j]
                s3 += r3[j] * w[j]
            out[q, c] = s0
            out[q + 1, c] = s1
            out[q + 2, c] = s2
            out[q + 3, c] = s3
        for q in range(full, count):
            row = block[q]
            s0 = np.float32(0.0)
            for j in range(k):
                s0 += row[j] * w[j]
            out[q, c] = s0


@fast_kernel
def _add_outer(block: Any, count: int, sums: Any, out: Any) -> None:
    """``out += sumsᵀ @ block``: (d × k), the transposed gradient of the projection."""
    k = block.shape[1]
    full = count - count % _LANES
    for q in range(0, full, _LANES):
        r0, r1, r2, r3 = block[q], block[q + 1], block[q + 2], block[q + 3]
        for c in range(sums.shape[1]):
            g0, g1, g2, g3 = sums[q, c], sums[q + 1, c], sums[q + 2, c], sums[q + 3, c]
            total = out[c]
            for j in range(k):
                total[j] += g0 * r0[j] + g1 * r1[j] + g2 * r2[j] + g3 * r3[j]
    for q in range(full, count):
        row = block[q]
        for c in range(sums.shape[1]):
            g0 = sums[q, c]
            total = out[c]
            for j in range(k):
                total[j] += g0 * row[j]


@fast_kernel
def _back_project(sums: Any, projection: Any, out: Any) -> None:
    """``out = sums @ projection`` for one row: (d) by (d × k)."""
    d, k = projection.shape
    for j in range(k):
        out[j] = np.float32(0.0)
    full = d - d % _LANES
    for c in range(0, full, _LANES):
        g0, g1, g2, g3 = sums[c], sums[c + 1], sums[c + 2], sums[c + 3]
        w0, w1 = projection[c], projection[c + 1]
        w2, w3 = projection[c + 2], projection[c + 3]
        for j in range(k):
            out[j] += g0 * w0[j] + g1 * w1[j] + g2 * w2[j] + g3 * w3[j]
    for c in range(full, d):
        g0 = sums[c]
        w0 = projection[c]
        for j in range(k):
            out[j] += g0 * w0[j]


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
    """Each distinct row's vector, then each output: a lookup's vector, or a pooled bag's."""
    width = table.shape[1]
    projected = projection.shape[0] > 0
    block = np.empty((BLOCK, width), np.float32)
    d = vectors.shape[1]
    for t in which:
        for low in range(row_starts[t], row_starts[t + 1], BLOCK):
            count = min(BLOCK, row_starts[t + 1] - low)
            if projected:
                for q in range(count):
                    load_row(table[rows[low + q]], half, block[q])
                _project(block, count, projection[t], vectors[low:])
            else:
                for q in range(count):
                    load_row(table[rows[low + q]], half, vectors[low + q])
        begin = starts[t]
        if bag[t] < 0:
            for b in range(out.shape[0]):
                vector = vectors[slots[begin + b]]
                target = out[b, t]
                for c in range(d):
                    target[c] = vector[c]
            continue
        ends = offsets[bag[t]]
        for b in range(out.shape[0]):
            target = out[b, t]
            for c in range(d):
                target[c] = np.float32(0.0)
            for i in range(ends[b], ends[b + 1]):
                vector = vectors[slots[begin + i]]
                for c in range(d):
                    target[c] += vector[c]
            if mean[t] and ends[b + 1] > ends[b]:
                scale = np.float32(1.0) / np.float32(ends[b + 1] - ends[b])
                for c in range(d):
                    target[c] *= scale


@kernel
def sum_of_each(slots: Any, grad: Any, sums: Any) -> None:
    """`sum_gradients_of` one table of which every lookup is handed out: (V × d) to (R × d)."""
    sums[:] = np.float32(0.0)
    for i in range(len(slots)):
        total, upstream = sums[slots[i]], grad[i]
        for c in range(sums.shape[1]):
            total[c] += upstream[c]


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
        begin = starts[t]
        if bag[t] < 0:
            for b in range(grad.shape[0]):
                total = sums[slots[begin + b]]
                upstream = grad[b, t]
                for c in range(d):
                    total[c] += upstream[c]
            continue
        ends = offsets[bag[t]]
        for b in range(grad.shape[0]):
            upstream = grad[b, t]
            length = ends[b + 1] - ends[b]
            scale = np.float32(1.0) / np.float32(length) if mean[t] and length else np.float32(1.0)
            for i in range(ends[b], ends[b + 1]):
                total = sums[slots[begin + i]]
                for c in range(d):
                    total[c] += scale * upstream[c]


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
    """``∂W2`` of the rows, and ``∂W1`` transposed."""
    block = np.empty((BLOCK, table.shape[1]), np.float32)
    for t in which:
        projection_grad[t] = np.float32(0.0)
        for low in range(row_starts[t], row_starts[t + 1], BLOCK):
            count = min(BLOCK, row_starts[t + 1] - low)
            for q in range(count):
                load_row(table[rows[low + q]], half, block[q])
                _back_project(sums[low + q], projection[t], rows_grad[low + q])
            _add_outer(block, count, sums[low:], projection_grad[t])


@fast_kernel
def _apply_rule(
    name: int, values: Any, grad: Any, lr: Any, decay: Any, eps: Any, beta1: Any, beta2: Any,
    first: Any, second: Any,
) -> None:  # fmt: skip
    """`mlet.engine.rules` for one row and its state."""
    width = len(values)
    one = np.float32(1.0)
    if decay != 0:
        for j in range(width):
            grad[j] += decay * values[j]
    if name == _SGD:
        for j in range(width):
            values[j] -= lr * grad[j]
    elif name == _ADAGRAD:
        for j in range(width):
            first[j] += grad[j] * grad[j]
        for j in range(width):
            values[j] -= lr * grad[j] / (np.sqrt(first[j]) + eps)
    elif name == _ROWWISE_ADAGRAD:
        total = np.float32(0.0)
        for j in range(width):
            total += grad[j] * grad[j]
        first[0] += total / np.float32(width)
        scale = lr / (np.sqrt(first[0]) + eps)
        for j in range(width):
            values[j] -= scale * grad[j]
    else:
        for j in range(width):
            first[j] += (one - beta1) * (grad[j] - first[j])
            second[j] += (one - beta2) * (grad[j] * grad[j] - second[j])
            values[j] -= lr * first[j] / (np.sqrt(second[j]) + eps)


@kernel
def _expect_block(rows: Any, low: int, end: int, table: Any, first: Any, second: Any) -> None:
    """The next block's rows and states."""
    for q in range(low, min(low + BLOCK, end)):
        expect_row(table, rows[q])
        if len(first) > 1:
            expect_row(first, rows[q])
        if len(second) > 1:
            expect_row(second, rows[q])


@fast_kernel
def update_of(
    which: Any,
    rows: Any,
    row_starts: Any,
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
    """Factor gradients and the rule in one pass over the rows; ``∂W1`` uses their old values."""
    width = table.shape[1]
    projected = projection.shape[0] > 0
    block = np.empty((BLOCK, width), np.float32)
    grad = np.empty(width, np.float32)
    for t in which:
        if projected:
            projection_grad[t] = np.float32(0.0)
        _expect_block(rows, row_starts[t], row_starts[t + 1], table, first, second)
        for low in range(row_starts[t], row_starts[t + 1], BLOCK):
            count = min(BLOCK, row_starts[t + 1] - low)
            _expect_block(rows, low + count, row_starts[t + 1], table, first, second)
            for q in range(count):
                load_row(table[rows[low + q]], half, block[q])
            if projected:
                _add_outer(block, count, sums[low:], projection_grad[t])
            for q in range(count):
                if not touched[low + q]:
                    continue
                row = rows[low + q]
                if projected:
                    _back_project(sums[low + q], projection[t], grad)
                else:
                    for j in range(width):
                        grad[j] = sums[low + q, j]
                # A rule without this state passes one row that it leaves alone.
                state1 = first[min(row, len(first) - 1)]
                state2 = second[min(row, len(second) - 1)]
                _apply_rule(name, block[q], grad, lr, decay, eps, beta1, beta2, state1, state2)
                store_row(block[q], half, seed, row, table[row])
