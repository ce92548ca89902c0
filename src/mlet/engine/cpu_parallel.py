"""The CPU kernels over all tables at once: thread s takes ``which[edges[s]:edges[s + 1]]``."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from mlet.engine.cpu_compile import parallel_kernel
from mlet.engine.cpu_kernels import (
    embed_of,
    factor_gradients_of,
    find_distinct_of,
    sum_gradients_of,
    update_of,
)


@parallel_kernel
def find_distinct(
    which: Any,
    edges: Any,
    ids: Any,
    starts: Any,
    sizes: Any,
    whole: Any,
    rows: Any,
    slots: Any,
    counts: Any,
    touched: Any,
) -> Any:
    """`find_distinct_of` for every thread's share of tables."""
    bad = np.full(len(edges) - 1, -1, np.int64)
    for share in numba.prange(len(edges) - 1):
        bad[share] = find_distinct_of(
            which[edges[share] : edges[share + 1]],
            ids,
            starts,
            sizes,
            whole,
            rows,
            slots,
            counts,
            touched,
        )
    return bad


@parallel_kernel
def embed(
    which: Any,
    edges: Any,
    rows: Any,
    bounds: Any,
    slots: Any,
    starts: Any,
    bag: Any,
    offsets: Any,
    mean: Any,
    table: Any,
    half: Any,
    projection: Any,
    vectors: Any,
    out: Any,
) -> None:
    """`embed_of` for every thread's share of tables."""
    for share in numba.prange(len(edges) - 1):
        embed_of(
            which[edges[share] : edges[share + 1]],
            rows,
            bounds,
            slots,
            starts,
            bag,
            offsets,
            mean,
            table,
            half,
            projection,
            vectors,
            out,
        )


@parallel_kernel
def sum_gradients(
    which: Any,
    edges: Any,
    bounds: Any,
    slots: Any,
    starts: Any,
    bag: Any,
    offsets: Any,
    mean: Any,
    grad: Any,
    sums: Any,
) -> None:
    """`sum_gradients_of` for every thread's share of tables."""
    for share in numba.prange(len(edges) - 1):
        sum_gradients_of(
            which[edges[share] : edges[share + 1]],
            bounds,
            slots,
            starts,
            bag,
            offsets,
            mean,
            grad,
            sums,
        )


@parallel_kernel
def factor_gradients(
    which: Any,
    edges: Any,
    rows: Any,
    bounds: Any,
    table: Any,
    half: Any,
    projection: Any,
    sums: Any,
    rows_grad: Any,
    projection_grad: Any,
) -> None:
    """`factor_gradients_of` for every thread's share of tables."""
    for share in numba.prange(len(edges) - 1):
        factor_gradients_of(
            which[edges[share] : edges[share + 1]],
            rows,
            bounds,
            table,
            half,
            projection,
            sums,
            rows_grad,
            projection_grad,
        )


@parallel_kernel
def update(
    which: Any,
    edges: Any,
    rows: Any,
    bounds: Any,
    touched: Any,
    table: Any,
    half: Any,
    projection: Any,
    sums: Any,
    projection_grad: Any,
    method: Any,
    lr: Any,
    decay: Any,
    eps: Any,
    beta1: Any,
    beta2: Any,
    first: Any,
    second: Any,
    seed: Any,
) -> None:
    """`update_of` for every thread's share of tables."""
    for share in numba.prange(len(edges) - 1):
        update_of(
            which[edges[share] : edges[share + 1]],
            rows,
            bounds,
            touched,
            table,
            half,
            projection,
            sums,
            projection_grad,
            method,
            lr,
            decay,
            eps,
            beta1,
            beta2,
            first,
            second,
            seed,
        )
