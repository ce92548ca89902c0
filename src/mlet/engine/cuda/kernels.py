"""Triton kernels of the CUDA backend.

A stack's distinct rows lie table after table, so a block of rows never spans two tables: the
grid has one axis for tables and one for programs that stride over a table's blocks. Sums over
lookups and over blocks are made in a fixed order, without atomics: the same input gives the same
bits. Triton takes annotations for its own, so that only its constants have any.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mlet.engine.rules import RuleName

SGD = tl.constexpr(int(RuleName.SGD))
ADAGRAD = tl.constexpr(int(RuleName.ADAGRAD))
ROWWISE_ADAGRAD = tl.constexpr(int(RuleName.ROWWISE_ADAGRAD))
ADAM = tl.constexpr(int(RuleName.ADAM))
#: Instead of updating, write the rows' gradients out.
GRADIENT = tl.constexpr(-1)


@triton.jit
def project(
    table,
    rows,
    starts,
    projection,
    vectors,
    k: tl.constexpr,
    d: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``vectors[r] = table[rows[r]] @ projection[t]`` for every row r of every table t."""
    t = tl.program_id(0)
    low = tl.load(starts + t)
    high = tl.load(starts + t + 1)
    js = tl.arange(0, BLOCK_K)
    cs = tl.arange(0, BLOCK_D)
    w = tl.load(
        projection + t * k * d + js[:, None] * d + cs[None, :],
        mask=(js[:, None] < k) & (cs[None, :] < d),
        other=0.0,
    ).to(tl.float32)
    for start in range(low + tl.program_id(1) * BLOCK, high, tl.num_programs(1) * BLOCK):
        r = start + tl.arange(0, BLOCK)
        row = tl.load(rows + r, mask=r < high, other=0)
        x = tl.load(
            table + row[:, None] * k + js[None, :],
            mask=(r[:, None] < high) & (js[None, :] < k),
            other=0.0,
        ).to(tl.float32)
        out = tl.dot(x, w, input_precision="ieee")
        tl.store(
            vectors + r[:, None] * d + cs[None, :],
            out,
            mask=(r[:, None] < high) & (cs[None, :] < d),
        )


@triton.jit
def sum_gradients(
    grad,
    order,
    firsts,
    outputs,
    weights,
    sums,
    d: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Row r's sum over its lookups ``order[firsts[r]:firsts[r + 1]]`` of outputs' gradients."""
    r = tl.program_id(0).to(tl.int64)
    low = tl.load(firsts + r)
    high = tl.load(firsts + r + 1)
    cs = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(low, high, BLOCK_L):
        place = start + tl.arange(0, BLOCK_L)
        lookup = tl.load(order + place, mask=place < high, other=0)
        out = tl.load(outputs + lookup, mask=place < high, other=0)
        g = tl.load(
            grad + out[:, None] * d + cs[None, :],
            mask=(place[:, None] < high) & (cs[None, :] < d),
            other=0.0,
        ).to(tl.float32)
        if WEIGHTED:
            weight = tl.load(weights + lookup, mask=place < high, other=0.0)
            g = g * weight[:, None]
        total += tl.sum(g, axis=0)
    tl.store(sums + r * d + cs, total, mask=cs < d)


@triton.jit
def _round(x, noise, HALF: tl.constexpr):
    """Stochastic rounding of float32 to a value that 16 bits hold (`mlet.engine.rounding`)."""
    bits = x.to(tl.int32, bitcast=True)
    if HALF:
        # Below its smallest normal number float16 has a fixed spacing.
        normal = ((bits + (noise & 0x1FFF)) & -8192).to(tl.float32, bitcast=True)
        uniform = (noise & 0xFFFFFF).to(tl.float32) * (1.0 / 16777216.0)
        tiny = tl.floor(x * 16777216.0 + uniform) * (1.0 / 16777216.0)
        rounded = tl.where(tl.abs(x) < 6.103515625e-05, tiny, normal)
    else:
        rounded = ((bits + (noise & 0xFFFF)) & -65536).to(tl.float32, bitcast=True)
    special = (bits & 0x7F800000) == 0x7F800000
    return tl.where(special, x, rounded)


@triton.jit
def update(
    table,
    rows,
    starts,
    touched,
    projection,
    sums,
    partial,
    rows_grad,
    first,
    second,
    lr,
    decay,
    eps,
    beta1,
    beta2,
    seed,
    k: tl.constexpr,
    d: tl.constexpr,
    PROJECTED: tl.constexpr,
    SHARED: tl.constexpr,
    RULE: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Factor gradients and the rule (`mlet.engine.rules`) for every touched row, in one pass.

    k is the width of the table's rows: of ordinary tables d, and their gradient is ``sums`` itself.
    Each program's share of ``∂W1`` goes to ``partial`` (T × programs × k × d), if SHARED. BITS is
    32, 16 for float16, 17 for bfloat16.
    """
    t = tl.program_id(0)
    programs = tl.num_programs(1)
    low = tl.load(starts + t)
    high = tl.load(starts + t + 1)
    js = tl.arange(0, BLOCK_K)
    cs = tl.arange(0, BLOCK_D)
    if PROJECTED:
        factor = (js[:, None] < k) & (cs[None, :] < d)
        place = js[:, None] * d + cs[None, :]
        w = tl.load(projection + t * k * d + place, mask=factor, other=0.0).to(tl.float32)
        if SHARED:
            share = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for start in range(low + tl.program_id(1) * BLOCK, high, programs * BLOCK):
        r = start + tl.arange(0, BLOCK)
        inside = r < high
        row = tl.load(rows + r, mask=inside, other=0).to(tl.int64)
        live = inside & (tl.load(touched + r, mask=inside, other=0) != 0)
        whole = inside[:, None] & (js[None, :] < k)
        mask = live[:, None] & (js[None, :] < k)
        at = row[:, None] * k + js[None, :]
        x = tl.load(table + at, mask=whole, other=0.0).to(tl.float32)
        if PROJECTED:
            upstream = tl.load(
                sums + r[:, None] * d + cs[None, :],
                mask=inside[:, None] & (cs[None, :] < d),
                other=0.0,
            )
            if SHARED:
                share += tl.dot(tl.trans(x), upstream, input_precision="ieee")
            g = tl.dot(upstream, tl.trans(w), input_precision="ieee")
        else:
            g = tl.load(sums + r[:, None] * k + js[None, :], mask=whole, other=0.0)
        if RULE == GRADIENT:
            tl.store(rows_grad + r[:, None] * k + js[None, :], g, mask=whole)
        else:
            if decay != 0.0:  # else an infinite weight would make its gradient NaN
                g += decay * x
            if RULE == SGD:
                x -= lr * g
            elif RULE == ADAGRAD:
                s = tl.load(first + at, mask=mask, other=0.0) + g * g
                tl.store(first + at, s, mask=mask)
                x -= lr * g / (tl.sqrt(s) + eps)
            elif RULE == ROWWISE_ADAGRAD:
                s = tl.load(first + row, mask=live, other=0.0)
                s += tl.sum(tl.where(mask, g * g, 0.0), axis=1) / k
                tl.store(first + row, s, mask=live)
                x -= lr * g / (tl.sqrt(s) + eps)[:, None]
            else:
                m = tl.load(first + at, mask=mask, other=0.0)
                v = tl.load(second + at, mask=mask, other=0.0)
                m += (1.0 - beta1) * (g - m)
                v += (1.0 - beta2) * (g * g - v)
                tl.store(first + at, m, mask=mask)
                tl.store(second + at, v, mask=mask)
                x -= lr * m / (tl.sqrt(v) + eps)
            if BITS != 32:
                noise = tl.randint(seed, at.to(tl.uint32)).to(tl.int32, bitcast=True)
                x = _round(x, noise, BITS == 16)
            tl.store(table + at, x.to(table.dtype.element_ty), mask=mask)
    if SHARED:
        base = (t * programs + tl.program_id(1)).to(tl.int64) * k * d
        tl.store(partial + base + place, share, mask=factor)
