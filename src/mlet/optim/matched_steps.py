"""Step sizes that mean the same for tables of two layers as for tables of one.

A step on the rows of W2 moves the product by what W1 makes of it. With entries of W1 independent,
of mean zero and standard deviation σ, k inner and d outer dimensions, and G the gradient of one row
of the product, the gradient of its row of W2 is ``h = G W1ᵀ``, with entries of standard deviation
``σ|G|``. The first step of each rule, of size one, and its length on the product (derived; tested
by simulation)::

    rule               step on W2     on the product    length, by root mean square
    SGD                h              h W1              |G| k σ² √(1 + (d + 1)/k)
    row-wise Adagrad   h / (σ|G|)     h W1 / (σ|G|)     k σ √(1 + (d + 1)/k)
    Adagrad, Adam      sign(h)        sign(h) W1        σ √(2k²/π + k (d − 1))

An ordinary table has ``|G|``, ``√d`` and ``√d`` there. At k = 64, d = 4 and σ = 1/√k, Adagrad's
step is 3.3 times as long on two layers, and the gradients that it divides are 8 times smaller
beside an ε of the same size. With the factors below, step sizes and damping mean the same for both,
and a range that is searched for the one is in the right place for the other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mlet.engine import RuleName


class StepFactors(NamedTuple):
    """What the settings of an ordinary table are multiplied by for the rows of W2.

    Attributes:
        lr: factor of the step size; also of the projection's, which is given in units of it.
        eps: factor of ε, such that steps which it dominates are as long too.
    """

    lr: float
    eps: float


def matched_steps(rule: RuleName, inner_dim: int, dim: int, projection_std: float) -> StepFactors:
    """The factors for a two-layer table.

    Args:
        rule: of the rows.
        inner_dim, dim: k and d.
        projection_std: σ of the entries of W1 as they were initialised.
    """
    k, d, std = inner_dim, dim, projection_std
    spread = math.sqrt(1.0 + (d + 1) / k)
    plain = k * std * std * spread  # h W1 in units of G
    if rule is RuleName.SGD:
        return StepFactors(1.0 / plain, 1.0)
    if rule is RuleName.ROWWISE_ADAGRAD:
        lr = math.sqrt(d) / (k * std * spread)
    else:
        lr = math.sqrt(d) / (std * math.sqrt(2.0 * k * k / math.pi + k * (d - 1)))
    return StepFactors(lr, lr * plain)
