"""Matrix products that round a row alike wherever it stands among others.

Libraries of linear algebra choose how they add up by the shape of a matrix and by where in memory
its rows begin, so that the same row has other last digits at another place. Within `alike` every
row of a product begins at a multiple of 64 bytes, and there are a multiple of 256 of them. Together
with batches of as many rows that makes the score of a row a function of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Of every batch of a model that is to give rows their own scores.
SERVED_ROWS = 256

#: Bytes to which rows are laid out: a line of the cache, and no vector of a processor is longer.
_LINE = 64

_ATEN = torch.ops.aten
#: Products, with the place of the factor whose rows are a batch's, and whether both lie in it.
_PRODUCTS: dict[Any, tuple[Callable[..., Tensor], int, bool]] = {
    _ATEN.mm.default: (torch.mm, 0, False),
    _ATEN.addmm.default: (torch.addmm, 1, False),
    _ATEN.mv.default: (torch.mv, 0, False),
    _ATEN.addmv.default: (torch.addmv, 1, False),
    _ATEN.bmm.default: (torch.bmm, 0, True),
    _ATEN.baddbmm.default: (torch.baddbmm, 1, True),
}
#: Those whose factor is given more rows where it has another number of them.
_FILLED = (_ATEN.mm.default, _ATEN.addmm.default)


class alike(TorchDispatchMode):
    """Within it products of float32 matrices on the CPU round rows alike; without gradients."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Lay out the factors and the result of a product; leave all else as it is."""
        options = kwargs or {}
        known = _PRODUCTS.get(func)
        if known is None:
            return func(*args, **options)
        product, place, both = known
        left, right = args[place], args[place + 1]
        if left.dtype != torch.float32 or left.device.type != "cpu":
            return func(*args, **options)
        given = [*args]
        rows = left.shape[0]
        # As many as there are distinct categories, where their vectors are computed. What is added
        # to a product may have rows of its own: then there are none to fill up.
        fills = func in _FILLED and (place == 0 or args[0].dim() == 1)
        filled = -(-rows // SERVED_ROWS) * SERVED_ROWS if fills else rows
        given[place] = _empty((filled, *left.shape[1:]), left)
        given[place][:rows] = left
        given[place][rows:] = 0
        if both:
            given[place + 1] = _empty(right.shape, right).copy_(right)
        if right.dim() == 1:
            return product(*given, **options)
        shape = (filled, *left.shape[1:-1], right.shape[-1])
        return product(*given, **options, out=_empty(shape, left))[:rows].contiguous()


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty tensor (…, n) whose rows all begin at a multiple of a line."""
    per_line = _LINE // like.element_size()
    width = -(-shape[-1] // per_line) * per_line
    rows = 1
    for size in shape[:-1]:
        rows *= size
    buffer = like.new_empty(rows * width + per_line)
    start = -buffer.data_ptr() % _LINE // like.element_size()
    return buffer[start : start + rows * width].view(*shape[:-1], width)[..., : shape[-1]]
