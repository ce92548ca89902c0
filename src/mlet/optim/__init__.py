"""Optimizers: of whole models, of embedding tables alone, and row-wise Adagrad for any table."""

from torch.nn.utils import clip_grad_norm_

from mlet.optim.fused_optimizer import FusedOptimizer
from mlet.optim.kinds import fused
from mlet.optim.membership import check_optimizers
from mlet.optim.rowwise_adagrad import RowWiseAdagrad
from mlet.optim.table_optimizers import (
    FusedAdagrad,
    FusedLazyAdam,
    FusedRowWiseAdagrad,
    FusedSGD,
)

__all__ = [
    "FusedAdagrad",
    "FusedLazyAdam",
    "FusedOptimizer",
    "FusedRowWiseAdagrad",
    "FusedSGD",
    "RowWiseAdagrad",
    "check_optimizers",
    "clip_grad_norm_",
    "fused",
]
