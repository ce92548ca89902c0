"""Finding modules in a tree and putting others in their place."""

from __future__ import annotations

from torch import nn


def find(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], *, exact: bool = False
) -> dict[str, nn.Module]:
    """Modules of some kinds by qualified name, each once however often it is used.

    Args:
        model: the tree; itself included, under the name "".
        kinds: classes to look for.
        exact: leave their subclasses out.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if (type(module) in kinds if exact else isinstance(module, kinds))
    }


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever the tree holds ``old``; returns the model, or ``new`` if it was it."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
    return model
