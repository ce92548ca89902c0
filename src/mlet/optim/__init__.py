"""Optimizers of embedding tables: fused for all of mlet's, row-wise Adagrad for any."""

from mlet.optim.fused import (
    FusedAdagrad,
    FusedLazyAdam,
    FusedRowWiseAdagrad,
    FusedSGD,
)
from mlet.optim.fused_optimizer import FusedOptimizer
from mlet.optim.rowwise_adagrad import RowWiseAdagrad

__all__ = [
    "FusedAdagrad",
    "FusedLazyAdam",
    "FusedOptimizer",
    "FusedRowWiseAdagrad",
    "FusedSGD",
    "RowWiseAdagrad",
]
