"""How a projection moves, whose table's rows are trained by FBGEMM in the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer
from torchrec.optim.fused import FusedOptimizer

from mlet.errors import ConversionError

#: What FBGEMM takes for itself where nothing is said.
_DEFAULT_RULE, _DEFAULT_LR, _DEFAULT_EPS = EmbOptimType.EXACT_SGD, 0.01, 1e-8
#: Of one table's parameters those which change what a step is, and what they must be.
_UNSERVED = {
    "weight_decay": 0.0,
    "gradient_clipping": False,
    "max_norm": 0.0,
    "use_rowwise_bias_correction": False,
    "initial_accumulator_value": 0.0,
}


class ProjectionRule(FusedOptimizer):  # type: ignore[misc]
    """The optimizer of one table's W1 (k × d): the rule of its rows, stepped in the backward pass.

    SGD is SGD; to Adagrad and row-wise Adagrad it is Adagrad, as with `mlet.optim.fused`. What it
    keeps is in the ``state_dict`` of TorchRec's ``fused_optimizer`` beside what FBGEMM keeps of the
    rows. As with FBGEMM's, a changed step size counts from the next call of ``step``, which moves
    nothing.

    Args:
        key: its name in the module.
        projection: the parameter.
        fused: what FBGEMM is told for the table.

    Raises:
        ConversionError: no rule is that of the rows.
    """

    def __init__(self, key: str, projection: nn.Parameter, fused: Mapping[str, Any]) -> None:
        self._optimizer = _optimizer(key, projection, fused)
        lr = self._optimizer.param_groups[0]["lr"]
        groups = [{"params": [projection], "lr": lr}]
        super().__init__({key: projection}, self._optimizer.state, groups)

    @torch.no_grad()
    def update(self, gradient: Tensor) -> None:
        """One step by the gradient (k × d) of all processes."""
        (projection,) = self.params.values()
        projection.grad = gradient
        self._optimizer.step()
        projection.grad = None

    def step(self, closure: Any = None) -> None:
        """From here on the step size is that of the group."""
        self._optimizer.param_groups[0]["lr"] = float(self.param_groups[0]["lr"])

    def zero_grad(self, set_to_none: bool = False) -> None:
        """There are none to be forgotten."""


def _optimizer(key: str, projection: nn.Parameter, fused: Mapping[str, Any]) -> Optimizer:
    table = key.split(".")[-2]
    for option, served in _UNSERVED.items():
        if fused.get(option, served) != served:
            raise ConversionError(
                f"table {table!r}: {option}={fused[option]} concerns rows that a batch touches, "
                f"and nothing is the same for a projection; leave it out"
            )
    rule, lr = fused.get("optimizer", _DEFAULT_RULE), float(fused.get("learning_rate", _DEFAULT_LR))
    if rule in (EmbOptimType.SGD, EmbOptimType.EXACT_SGD):
        return SGD([projection], lr=lr)
    if rule in (EmbOptimType.EXACT_ADAGRAD, EmbOptimType.EXACT_ROWWISE_ADAGRAD):
        return Adagrad([projection], lr=lr, eps=float(fused.get("eps", _DEFAULT_EPS)))
    raise ConversionError(
        f"table {table!r}: {rule.name} has no rule for a projection; those that have are "
        f"EXACT_SGD, EXACT_ADAGRAD and EXACT_ROWWISE_ADAGRAD"
    )
