"""Finding modules in a tree and putting others in their place."""

from __future__ import annotations

from torch import nn

from mlet.errors import ConversionError

#: Where torch keeps what users register on a module; a handle removes from the same mapping.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


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


def check_replaceable(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> None:
    """Refuse what `replace` could not do without a loss.

    Raises:
        ConversionError: the table is compiled by itself: the compiled function is bound to it. Or
            somebody's hook on its ``state_dict`` would take the place of one of the new table's.
    """
    for wrapper in model.modules():
        if wrapper._modules.get("_orig_mod") is old:
            raise ConversionError(
                f"table {name!r} is compiled by itself, and the compiled one would stay: use "
                f"torch.compile on the model afterwards"
            )
    for kind in _HOOKS:
        if getattr(new, kind) and len(getattr(old, kind)) > len(getattr(new, kind)):
            raise ConversionError(
                f"table {name!r} has hooks of its own ({kind.strip('_')}) that cannot be carried "
                f"over; remove them first"
            )


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever the tree holds ``old``; returns the model, or ``new`` if it was it.

    Hooks that users registered on the old module act on the new one, and their handles too.
    """
    for kind in _HOOKS:
        if not getattr(new, kind):
            setattr(new, kind, getattr(old, kind))
    new._is_full_backward_hook = old._is_full_backward_hook
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
    return model
