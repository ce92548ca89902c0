"""Whether an optimizer trains the tables that a model has now."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from mlet.errors import MletError
from mlet.nn.factored import factored_modules


def check_optimizers(model: nn.Module, *optimizers: Optimizer) -> None:
    """Check that optimizers hold a model's two-layer tables, and nothing that it no longer has.

    An optimizer that was made before `mlet.convert` goes on training the tables that were replaced,
    without a word. Call this before training, or after its first step.

    Args:
        model: as it is trained.
        optimizers: all that step its parameters.

    Raises:
        MletError: a factor that is to be trained is in none of them, or one of them holds
            parameters that are none of the model's; names them.

    Example:
        >>> model = mlet.convert(model)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> mlet.optim.check_optimizers(model, optimizer)
    """
    held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    known = {id(parameter) for parameter in model.parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    forgotten = [
        names[id(factor)]
        for module in factored_modules(model).values()
        for pair in module.factor_parameters()
        for factor in pair
        if factor.requires_grad and id(factor) not in held
    ]
    strange = len(held - known)
    if forgotten or strange:
        what = [f"does not train {', '.join(dict.fromkeys(forgotten))}"] if forgotten else []
        what += [f"holds {strange} parameters that the model does not have"] if strange else []
        raise MletError(
            f"the optimizer {' and '.join(what)}: it was made before the model was converted, or "
            f"for another; make it after mlet.convert"
        )
