"""Finding modules in a tree and putting others in their place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mlet.errors import ConversionError
from mlet.optim.processes import is_exchange

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
#: Where torch keeps what users register on a parameter.
GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
#: What a two-layer table has and an ordinary one has not.
OF_TWO_LAYERS = ("inner_dim", "init", "row_gradients", "factored_gradient", "stack")


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


def hooks_of(module: nn.Module) -> bool:
    """Whether somebody registered any on a module."""
    return any(getattr(module, kind) for kind in _HOOKS)


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


def check_plain(name: str, table: nn.Module, own: Sequence[str], *, whole: bool = True) -> None:
    """Refuse a table with more to it than its parameters, which its replacement would not have.

    Args:
        name, table: which.
        own: the names of its parameters.
        whole: nothing else of it is carried over.

    Raises:
        ConversionError: a parameter is parametrized or pruned, or has hooks; the instance has a
            ``forward`` of its own, or parts that its class does not have.
    """
    if not set(own) <= set(table._parameters):
        raise ConversionError(
            f"table {name!r}: its {own[0]} is parametrized or pruned, or no parameter of its own; "
            f"remove that first (torch.nn.utils.parametrize.remove_parametrizations, "
            f"torch.nn.utils.prune.remove) or leave the table out"
        )
    parts = [*table._modules, *table._buffers, *(p for p in table._parameters if p not in own)]
    if parts and whole:
        raise ConversionError(
            f"table {name!r} holds {', '.join(parts)} beside its weights, which would be lost; "
            f"remove that first or leave the table out"
        )
    if "forward" in vars(table):
        raise ConversionError(
            f"table {name!r} has a forward of its own in the place of its class's, which would be "
            f"lost; put it in place afterwards"
        )
    for parameter in own:
        weight = table._parameters[parameter]
        hooks = [
            hook for kind in GRADIENT_HOOKS for hook in (getattr(weight, kind, None) or {}).values()
        ]
        if not all(map(is_exchange, hooks)):
            raise ConversionError(
                f"table {name!r}: its {parameter} has hooks on its gradient, which the other "
                f"parameters would not have; register them afterwards"
            )


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever the tree holds ``old``; returns the model, or ``new`` if it was it.

    Hooks that users registered on the old module act on the new one, and their handles too; what
    else they attached to it goes along. Those of an exchange between processes are taken off: the
    parameters that it is of are no more.
    """
    for name, value in vars(old).items():
        if not name.startswith("_") and name not in (*vars(new), *OF_TWO_LAYERS):
            setattr(new, name, value)
    for kind in _HOOKS:
        hooks = getattr(old, kind)
        for key in [key for key, hook in hooks.items() if is_exchange(hook)]:
            del hooks[key]
        if not getattr(new, kind):
            setattr(new, kind, hooks)
    new._is_full_backward_hook = old._is_full_backward_hook
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
    return model


def become(old: nn.Module, new: nn.Module) -> None:
    """Let ``old`` be what ``new`` is, a copy of it with other parts: whoever holds it, or has
    registered hooks on it, goes on with it."""
    old.__class__ = type(new)
    parts = dict(vars(new))
    vars(old).clear()
    vars(old).update(parts)
