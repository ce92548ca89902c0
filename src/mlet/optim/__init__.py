"""Optimizers of embedding tables: fused for `mlet.nn.FieldEmbedding`, row-wise Adagrad for any."""

from mlet.optim.fused import (
    FusedAdagrad,
    FusedLazyAdam,
    FusedOptimizer,
    FusedRowWiseAdagrad,
    FusedSGD,
)
from mlet.optim.rowwise_adagrad import RowWiseAdagrad

__all__ = [
    "FusedAdagrad",
    "FusedLazyAdam",
    "FusedOptimizer",
    "FusedRowWiseAdagrad",
    "FusedSGD",
    "RowWiseAdagrad",
]
