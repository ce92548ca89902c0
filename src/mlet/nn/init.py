"""Initialisations of a two-layer table ``W = inner @ projection``.

Each is a function that fills both factors in place. ``n`` is the number of categories, ``k``
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

InitName: TypeAlias = Literal["paper", "variance_matched"]

#: Standard deviation of the projection in the authors' code (``linp_init="normal"``).
PAPER_PROJECTION_STD = 0.25


@torch.no_grad()
def single_layer_(weight: Tensor) -> None:
    """Fill an ordinary table (n × d) as DLRM does: uniform on ``±sqrt(1/n)``."""
    bound = 1.0 / math.sqrt(weight.shape[0])
    weight.uniform_(-bound, bound)


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
