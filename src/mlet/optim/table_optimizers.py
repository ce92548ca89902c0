"""The fused optimizers of tables alone, one for each rule."""

from __future__ import annotations

from typing import Any

from torch import nn

from mlet.engine import RuleName
from mlet.optim.fused_optimizer import FusedOptimizer


class FusedSGD(FusedOptimizer):
    """``θ ← θ − η (g + λθ)`` on touched rows. No state.

    Args:
        module: holds one `FieldEmbedding` or more.
        lr: step size η.
        weight_decay: λ, on touched rows only.
        projection_lr: step size of the projections, in units of that of the rows.
        bias_lr: that of table biases, in the same units; None: as of the projections.
        matched_steps: make steps on two-layer tables as long as those on ordinary ones.
    """

    rule_name = RuleName.SGD

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.1,
        weight_decay: float = 0.0,
        *,
        projection_lr: float = 1.0,
        bias_lr: float | None = None,
        matched_steps: bool = False,
    ) -> None:
        super().__init__(module, _defaults(lr, weight_decay, projection_lr, bias_lr, matched_steps))


class FusedAdagrad(FusedOptimizer):
    """Adagrad on touched rows; state: as many floats as the table has.

    Args:
        module, lr, weight_decay, projection_lr, bias_lr, matched_steps: as of `FusedSGD`.
        eps: ε, outside the root.
    """

    rule_name = RuleName.ADAGRAD

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.02,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        *,
        projection_lr: float = 1.0,
        bias_lr: float | None = None,
        matched_steps: bool = False,
    ) -> None:
        super().__init__(
            module, _defaults(lr, weight_decay, projection_lr, bias_lr, matched_steps, eps)
        )


class FusedRowWiseAdagrad(FusedOptimizer):
    """Adagrad with one accumulator a row, of the mean squared gradient; state: n floats.

    Args:
        module, lr, weight_decay, projection_lr, bias_lr, matched_steps: as of `FusedSGD`.
        eps: ε, outside the root.
    """

    rule_name = RuleName.ROWWISE_ADAGRAD

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.02,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        *,
        projection_lr: float = 1.0,
        bias_lr: float | None = None,
        matched_steps: bool = False,
    ) -> None:
        super().__init__(
            module, _defaults(lr, weight_decay, projection_lr, bias_lr, matched_steps, eps)
        )


class FusedLazyAdam(FusedOptimizer):
    """Adam whose moments of a row change only when the row is touched, as `torch.optim.SparseAdam`;
    the projections get ordinary Adam. State: twice as many floats as the table has.

    Args:
        module, lr, weight_decay, projection_lr, bias_lr, matched_steps: as of `FusedSGD`.
        betas: β₁, β₂.
        eps: ε, outside the root, before bias correction as in SparseAdam.
    """

    rule_name = RuleName.ADAM

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.001,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        projection_lr: float = 1.0,
        bias_lr: float | None = None,
        matched_steps: bool = False,
    ) -> None:
        super().__init__(
            module, _defaults(lr, weight_decay, projection_lr, bias_lr, matched_steps, eps, betas)
        )


def _defaults(
    lr: float,
    weight_decay: float,
    projection_lr: float,
    bias_lr: float | None,
    matched_steps: bool,
    eps: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> dict[str, Any]:
    return {
        "matched_steps": matched_steps,
        "lr": lr,
        "weight_decay": weight_decay,
        "projection_lr": projection_lr,
        "bias_lr": bias_lr,
        "eps": eps,
        "betas": betas,
    }
