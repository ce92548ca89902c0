"""A hint to the processor: a row that will be read and written soon.

Rows of a large table lie anywhere in memory. What a kernel knows of its next ones, it says early,
so that waiting for one row does not begin where waiting for the last one ended.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from mlet.engine.cpu.compile import kernel

_LINE = 64  # bytes that memory hands out at once


@intrinsic
def _prefetch(typing: Any, array: Any, row: Any, column: Any) -> Any:
    """LLVM's, of the place of an element of a two-dimensional array."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        of = signature.args[0]
        view = context.make_array(of)(context, builder, values[0])
        tools: Any = cgutils
        shape = tools.unpack_tuple(builder, view.shape, of.ndim)
        strides = tools.unpack_tuple(builder, view.strides, of.ndim)
        place = tools.get_item_pointer2(
            context, builder, view.data, shape, strides, of.layout, list(values[1:])
        )
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        to_write, keep, data = (ir.Constant(word, number) for number in (1, 3, 1))
        builder.call(function, [builder.bitcast(place, byte), to_write, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


@kernel
def expect_row(array: Any, row: int) -> None:
    """All of one row is wanted soon; nothing happens if it is not there."""
    if row < 0 or row >= array.shape[0]:
        return
    for column in range(0, array.shape[1], _LINE // array.itemsize):
        _prefetch(array, row, column)  # type: ignore[call-arg]
