"""The product of two factors, where a layer shows it as its table: to be read, not written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: What writes to a tensor without ending in an underscore, as torch's other in-place functions do.
_WRITERS = (
    "__setitem__",
    "__set__",
    *(f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "pow")),
)

#: Reads a tensor's ``data``: the same memory, but no view.
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class _OrdinaryToIsinstance(type(Tensor)):  # type: ignore[misc]
    """``torch.testing.assert_close`` compares tensors one of which is an instance of the other's
    class: a product compares with all that an ordinary tensor compares with."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Tensor)


class TableProduct(Tensor, metaclass=_OrdinaryToIsinstance):
    """A tensor, computed from others, that refuses to be written to.

    What is written to an ordinary table's ``weight`` stays there (``nn.init.normal_(weight)``,
    ``weight.data.zero_()``, ``weight[0] = …``, ``weight.data = …``). A product is made afresh at
    each access, so that it would be lost without a word. ``data`` and views are refused as the
    whole is. ``detach()`` and all that is computed from it are ordinary tensors, to make another
    table of.
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
        writes = name in _WRITERS or (name.endswith("_") and not name.endswith("__"))
        # torch.nn.init hands on its tensor by name.
        target = args[0] if args else kwargs.get("tensor")
        written = [kwargs.get("out"), target if writes else None]
        if any(type(tensor) is TableProduct for tensor in written):
            raise RuntimeError(
                f"{name} would write to the weight of a two-layer table, which is computed from "
                f"inner and projection: what is written to it is lost. Give the layer a table with "
                f"layer.set_table(values), draw it afresh with layer.reset_parameters(), or write "
                f"to layer.inner and layer.projection"
            )
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        shared = isinstance(out, Tensor) and (out._is_view() or func == _DATA)
        return out.as_subclass(cls) if shared else out

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file keeps an ordinary tensor."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def product(inner: Tensor, projection: Tensor) -> Tensor:
    """``inner @ projection`` (n × d), differentiable, not to be written to."""
    table = inner @ projection
    # A compiled or transformed function is given the formula: nobody initialises a table in one.
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(table):
        return table
    return table.as_subclass(TableProduct)
