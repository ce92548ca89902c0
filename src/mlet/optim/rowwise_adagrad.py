"""Row-wise Adagrad: one accumulator for each row of an embedding table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class RowWiseAdagrad(Optimizer):
    """Adagrad that keeps the mean squared gradient of each row: n floats of state, not n × k.

    For every row i with gradient ``g_i`` of width w::

        s_i ← s_i + ‖g_i‖² / w
        θ_i ← θ_i − η g_i / (√s_i + ε)

    Rows without a gradient stay as they are. This is the form used by FBGEMM's
    ``EXACT_ROWWISE_ADAGRAD``.

    Args:
        params: parameters of any shape, with dense gradients, or two-dimensional ones with sparse
            gradients. An entry of a vector is a row of its own: that is Adagrad.
        lr: step size η.
        eps: ε, outside the root.

    State:
        ``sum``: (n,), in the parameter's dtype.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02, eps: float = 1e-8) -> None:
        if lr < 0 or eps < 0:
            raise ValueError(f"lr and eps must not be negative, got lr={lr}, eps={eps}")
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every row that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, self.state[parameter])
        return loss

    @staticmethod
    def _update(
        parameter: Tensor, grad: Tensor, group: dict[str, Any], state: dict[str, Tensor]
    ) -> None:
        if "sum" not in state:
            state["sum"] = parameter.new_zeros(parameter.shape[:1])
        sums = state["sum"]
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, values = grad.indices()[0], grad.values()
            squares = sums.index_select(0, rows) + values.square().mean(dim=1)
            sums.index_copy_(0, rows, squares)
            step = values / (squares.sqrt() + group["eps"]).unsqueeze(1)
            parameter.index_add_(0, rows, step, alpha=-group["lr"])
        else:
            within = tuple(range(1, grad.dim()))
            sums += grad.square().mean(dim=within) if within else grad.square()
            # A row without a gradient has s = 0 at first: 0 / (0 + ε) leaves it as it is.
            root = (sums.sqrt() + group["eps"]).view((*sums.shape, *(1 for _ in within)))
            parameter.addcdiv_(grad, root, value=-group["lr"])
