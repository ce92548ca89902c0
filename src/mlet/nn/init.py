"""Initialisations of a two-layer table ``W = inner @ projection``.

Each initialisation is a function that fills both factors in place; `balanced_factors` holds a given
table. ``n`` is the number of categories, ``k``
the inner dimension, ``d`` the embedding dimension.

The entries of an ordinary DLRM table are uniform on ``±sqrt(1/n)``, with variance ``1/(3n)``.
Those of a product have variance ``k · var(inner) · var(projection)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mlet.engine import empty_rows
from mlet.table_shards import Shards

#: Rows that are in float64 at once.
_BLOCK_ROWS = 65_536
#: Numbers drawn at once where a process has some rows of a table.
_SHARD_NUMBERS = 1 << 20

InitName: TypeAlias = Literal["paper", "variance_matched"]

#: Standard deviation of the projection in the authors' code (``linp_init="normal"``).
PAPER_PROJECTION_STD = 0.25


@torch.no_grad()
def single_layer_(weight: Tensor) -> None:
    """Fill an ordinary table (n × d) as DLRM does: uniform on ``±sqrt(1/n)``."""
    bound = 1.0 / math.sqrt(weight.shape[0])
    weight.uniform_(-bound, bound)


@torch.no_grad()
def single_layer_shard_(weight: Tensor, rows: int, shards: Shards) -> None:
    """Fill what is here of a table of so many rows with what `single_layer_` fills the whole with.

    All numbers are drawn, a block at a time, and those of other processes' rows forgotten.
    """
    bound, at = 1.0 / math.sqrt(rows), 0
    count = max(1, _SHARD_NUMBERS // weight.shape[1])
    for low in range(0, rows, count):
        block = weight.new_empty(min(count, rows - low), weight.shape[1])
        mine = block.uniform_(-bound, bound)[shards.own(low)]
        weight[at : at + len(mine)] = mine
        at += len(mine)


@torch.no_grad()
def paper_(inner: Tensor, projection: Tensor) -> None:
    """The authors' initialisation: inner uniform on ``±sqrt(1/n)``, projection normal, std 0.25.

    The product's entries have ``k/16`` times the variance of a single-layer table's: the same at
    k = 16, four times at k = 64.
    """
    single_layer_(inner)
    projection.normal_(0.0, PAPER_PROJECTION_STD)


@torch.no_grad()
def variance_matched_(inner: Tensor, projection: Tensor) -> None:
    """Inner uniform on ``±sqrt(1/n)``, projection normal with std ``1/sqrt(k)``.

    The product's entries have the variance of a single-layer table's, ``1/(3n)``, at every k.
    """
    single_layer_(inner)
    projection.normal_(0.0, 1.0 / math.sqrt(projection.shape[0]))


INITIALISATIONS: dict[InitName, Callable[[Tensor, Tensor], None]] = {
    "paper": paper_,
    "variance_matched": variance_matched_,
}


#: Standard deviation of the projection's entries as initialised, given k.
PROJECTION_STDS: dict[InitName, Callable[[int], float]] = {
    "paper": lambda inner_dim: PAPER_PROJECTION_STD,
    "variance_matched": lambda inner_dim: 1.0 / math.sqrt(inner_dim),
}


@torch.no_grad()
def balanced_factors(
    table: Tensor, inner_dim: int, extra_std: float, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Factor a table (n × d) exactly as ``W2 W1`` with W2 (n × k), W1 (k × d), k ≥ d.

    With the singular value decomposition W = U S Vᵀ::

        W2 = [U √S, E],    W1 = [√S Vᵀ; 0]

    so that on the shared directions W2ᵀ W2 = W1 W1ᵀ = S: the balance that gradient flow conserves.
    The extra k − d columns E are normal with standard deviation ``extra_std``. They meet zero rows
    of W1, so they leave the product as it is, but give those rows the gradient ``Eᵀ G``: the
    directions are there to be used from the first step on.

    U S and V come from the d × d Gram matrix's eigenvectors V, as U S = W V; no n × n object is
    made, and since V is orthogonal the product is W V Vᵀ, exact to rounding whatever the error of
    the eigenvalues. The work is done in float64, a block of rows at a time.

    Args:
        table: W (n × d), any floating dtype; on the meta device only shapes are made.
        inner_dim: k.
        extra_std: scale of E.
        out: W2 and W1 to fill; new ones by default.

    Returns:
        W2 and W1 in the table's dtype, on its device.

    Raises:
        ValueError: k < d; a product of rank k cannot equal a table of rank d.
    """
    n, d = table.shape
    if inner_dim < d:
        raise ValueError(
            f"inner_dim={inner_dim} is below embedding_dim={d}: such a product cannot hold the "
            f"weights there are"
        )
    inner, projection = out or (
        empty_rows((n, inner_dim), table.dtype, table.device),
        table.new_empty(inner_dim, d),
    )
    if table.is_meta:
        return inner, projection
    gram = torch.zeros(d, d, dtype=torch.float64, device=table.device)
    for start in range(0, n, _BLOCK_ROWS):
        wide = table[start : start + _BLOCK_ROWS].double()
        gram += wide.T @ wide
    eigenvalues, basis = torch.linalg.eigh(gram)
    # √S; a direction without weight keeps a factor of 1 so that it can be divided by.
    roots = eigenvalues.clamp(min=0).sqrt().sqrt()
    roots = torch.where(roots > 1e-8 * roots.max(), roots, torch.ones_like(roots))
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        inner[rows, :d] = (table[rows].double() @ basis) / roots
    projection[:d] = roots.unsqueeze(1) * basis.T
    projection[d:] = 0
    inner[:, d:].normal_(0.0, extra_std)
    return inner, projection
