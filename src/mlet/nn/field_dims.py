"""How wide the tables of single fields are, where a model does not give all of them the same d."""

from __future__ import annotations

import math


def field_dim(num_embeddings: int, smallest: int, dim: int, exponent: float) -> int:
    """``d_f = d · (n_f / min n)^−α``, the nearest power of two, from 1 to d (Ginart et al. 2019,
    arXiv 1909.11810, algorithm 2, with fields as blocks of popularity ``1 / n_f``).

    Args:
        num_embeddings: n of the field.
        smallest: n of the smallest field.
        dim: d.
        exponent: α; 0 gives all fields d.
    """
    exact = math.log2(dim) - exponent * math.log2(num_embeddings / smallest)
    return min(dim, 1 << max(0, round(exact)))
