"""The product of two factors, where a layer shows it as its table: to be read, not written to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: What writes to a tensor without ending in an underscore, as torch's other in-place functions do.
_WRITERS = (
    "__setitem__",
    "__set__",
    *(f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "pow")),
)

#: What gives the same memory, but is no view to autograd.
_ALIASES = (Tensor.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


class _OrdinaryToIsinstance(type(Tensor)):  # type: ignore[misc]
    """``torch.testing.assert_close`` compares tensors one of which is an instance of the other's
    class: a product compares with all that an ordinary tensor compares with."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Tensor)


class TableProduct(Tensor, metaclass=_OrdinaryToIsinstance):
    """A tensor, computed from others, that refuses to be written to.

    What is written to an ordinary table's ``weight`` stays there (``nn.init.normal_(weight)``,
    ``weight.data.zero_()``, ``weight[0] = …``, ``weight.data = …``). A product is made afresh at
    each access, so that it would be lost without a word. ``data``, ``detach()`` and views are
    refused as the whole is, and NumPy's arrays of its memory are read-only; all that is computed
    from it is an ordinary tensor, and so is a parameter made of it
    (``nn.Parameter(layer.weight)``), which is another table.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, unless it writes to a product."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if any(map(_is_shown, _written(func, name, args, kwargs))):
            raise RuntimeError(
                f"{name} would write to the weight of a two-layer table, which is computed from "
                f"inner and projection: what is written to it is lost. Give the layer a table with "
                f"layer.set_table(values), draw it afresh with layer.reset_parameters(), write to "
                f"layer.inner and layer.projection, or freeze it with layer.requires_grad_(False)"
            )
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        if not any(map(_is_shown, (*args, *kwargs.values()))):
            return out  # of a parameter that was made of a product
        if isinstance(out, (list, tuple)) and not isinstance(out, torch.Size):
            parts = [_shown_again(part, func) for part in out]
            return type(out)(parts) if type(out) in (list, tuple) else out
        return _shown_again(out, func)

    def set_(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as all that writes; torch asks nobody before this one."""
        return self.__torch_function__(Tensor.set_, (type(self),), (self, *args), kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A table of its own; as of torch's tensors, not of one that is being differentiated."""
        plain = self.as_subclass(Tensor)
        if not self.is_leaf:
            return copy.deepcopy(plain, memo)
        made = plain.detach().clone()
        if getattr(self, "_is_param", False):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file keeps an ordinary tensor, or parameter."""
        plain = self.as_subclass(Tensor)
        if getattr(self, "_is_param", False):
            plain = torch.nn.Parameter(plain.detach(), self.requires_grad)
        return plain.__reduce_ex__(protocol)


def _is_shown(value: Any) -> bool:
    """Whether it is a product, and not the parameter that ``nn.Parameter`` has made of one."""
    return type(value) is TableProduct and not getattr(value, "_is_param", False)


def _written(
    func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[Any]:
    """What a function writes to."""
    out = kwargs.get("out")
    yield from out if isinstance(out, tuple) else (out,)
    writes = name in _WRITERS or (name.endswith("_") and not name.endswith("__"))
    if name == "requires_grad_" and args[0].is_leaf:
        writes = False  # what `nn.Parameter` asks of a copy
    if writes or kwargs.get("inplace"):
        first = _first(args, kwargs)
        yield from first if isinstance(first, (list, tuple)) else (first,)


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function is given first; torch.nn.init hands its tensor on by name."""
    return args[0] if args else kwargs.get("tensor", kwargs.get("input"))


def _shown_again(out: Any, func: Callable[..., Any]) -> Any:
    """A view of a product, or the same memory, as what is not to be written to; else as it is."""
    if type(out) is not TableProduct and isinstance(out, Tensor):
        shared = out._is_view() or func in _ALIASES
        return out.as_subclass(TableProduct) if shared else out
    if isinstance(out, np.ndarray):
        out.flags.writeable = False  # NumPy says so to who writes to it
    return out


def product(inner: Tensor, projection: Tensor) -> Tensor:
    """``inner @ projection`` (n × d), differentiable, not to be written to."""
    table = inner @ projection
    # A compiled or transformed function is given the formula: nobody initialises a table in one.
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(table):
        return table
    return table.as_subclass(TableProduct)
