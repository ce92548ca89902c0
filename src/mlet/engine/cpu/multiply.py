"""Products of small matrices, held in the processor's vector registers while they add up.

What two layers cost beyond one is three thin products for each block of rows. Written as loops, a
compiler adds them up in memory or along the short side; here a tile of some 64 numbers stays in
registers from the first step to the last, whatever vectors the processor has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.core.errors import RequireLiteralValue, TypingError
from numba.extending import intrinsic

from mlet.engine.cpu.compile import CHECKED, kernel

#: Numbers side by side in a tile, the most that fit first, and then rows of it: narrow tiles are
#: the higher, since what keeps a processor busy is many sums at once.
_TILES = {16: (4, 1), 8: (8, 4, 1), 4: (16, 4, 1), 2: (16, 4, 1), 1: (16, 4, 1)}

_FLOAT, _INDEX = ir.FloatType(), ir.IntType(64)
_CONTRACT = ("contract", "nsz")  # multiply and add in one instruction, where there is one


@intrinsic
def _multiply(
    typing: Any,
    left: Any, left_at: Any, left_row: Any, left_step: Any,
    right: Any, right_at: Any,
    out: Any, out_at: Any,
    rows: Any, steps: Any, add: Any,
) -> Any:  # fmt: skip
    """``out[r, :] = Σ_s left[left_at + r·left_row + s·left_step] · right[s, :]``, or ``+=``.

    Rows of ``right`` and ``out`` follow one another, from ``right_at`` and ``out_at``. All places
    are counted in elements.
    """
    for matrix in (left, right, out):
        if matrix.layout != "C" or matrix.dtype != types.float32 or matrix.ndim != 2:
            raise TypingError(f"{matrix} is not a contiguous float32 matrix")
    if not isinstance(add, types.IntegerLiteral):
        raise RequireLiteralValue("whether to add is part of the code")
    adds = bool(add.literal_value)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def array(place: int) -> Any:
            return context.make_array(signature.args[place])(context, builder, values[place])

        def at(data: Any, *terms: Any) -> Any:
            total = terms[0]
            for term in terms[1:]:
                total = builder.add(total, term)
            return builder.gep(data, [total], inbounds=True)

        zero = ir.Constant(_INDEX, 0)
        tools: Any = cgutils
        left_data, right_data, out_data = array(0).data, array(4).data, array(6).data
        _, left_at, left_row, left_step, _, right_at, _, out_at, rows, steps, _ = values
        width = tools.unpack_tuple(builder, array(4).shape, 2)[1]

        def tile(first: Any, count: int, column: Any, lanes: int) -> None:
            vector = ir.VectorType(_FLOAT, lanes)
            kept = [tools.alloca_once(builder, vector) for _ in range(count)]
            for place in kept:
                builder.store(ir.Constant(vector, None), place)
            numbers = [builder.add(first, ir.Constant(_INDEX, r)) for r in range(count)]
            starts = [builder.add(left_at, builder.mul(r, left_row)) for r in numbers]
            with tools.for_range(builder, steps) as loop:
                step = loop.index
                pointer = at(right_data, right_at, column, builder.mul(step, width))
                line = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)
                along = builder.mul(step, left_step)
                for place, start in zip(kept, starts, strict=True):
                    number = builder.load(at(left_data, start, along), align=4)
                    spread = _spread(builder, number, vector)
                    product = builder.fmul(spread, line, flags=_CONTRACT)
                    total = builder.fadd(builder.load(place), product, flags=_CONTRACT)
                    builder.store(total, place)
            for place, number in zip(kept, numbers, strict=True):
                pointer = at(out_data, out_at, column, builder.mul(number, width))
                pointer = builder.bitcast(pointer, vector.as_pointer())
                total = builder.load(place)
                if adds:
                    total = builder.fadd(total, builder.load(pointer, align=4))
                builder.store(total, pointer, align=4)

        column: Any = zero
        for lanes, heights in _TILES.items():
            size = ir.Constant(_INDEX, lanes)
            whole = builder.sdiv(builder.sub(width, column), size)
            stop = builder.add(column, builder.mul(whole, size))
            with tools.for_range_slice(builder, column, stop, size) as (place, _):
                begin: Any = zero
                for count in heights:
                    many = ir.Constant(_INDEX, count)
                    fit = builder.mul(builder.sdiv(builder.sub(rows, begin), many), many)
                    end = builder.add(begin, fit)
                    with tools.for_range_slice(builder, begin, end, many) as (row, _):
                        tile(row, count, place, lanes)
                    begin = end
            column = stop
        return context.get_dummy_value()

    place = types.intp
    given = (left, place, place, place, right, place, out, place, place, place, add)
    return types.void(*given), generate


def _spread(builder: Any, number: Any, vector: Any) -> Any:
    """A vector of one number over and over."""
    word = ir.IntType(32)
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(word, 0))
    return builder.shuffle_vector(
        first, empty, ir.Constant(ir.VectorType(word, vector.count), None)
    )


@kernel
def _check(matrix: Any, rows: int, width: int) -> None:
    if CHECKED and (matrix.shape[0] < rows or matrix.shape[1] != width):
        raise IndexError("a product beyond the end of a matrix")


@kernel
def product(left: Any, first: int, count: int, right: Any, out: Any, place: int) -> None:
    """``out[place : place + count] = left[first : first + count] @ right``."""
    steps, width = right.shape
    _check(left, first + count, steps)
    _check(out, place + count, width)
    _multiply(left, first * steps, steps, 1, right, 0, out, place * width, count, steps, 0)  # type: ignore[call-arg]


@kernel
def add_product(left: Any, first: int, count: int, right: Any, out: Any) -> None:
    """``out[:count] += left[first : first + count] @ right``."""
    steps, width = right.shape
    _check(left, first + count, steps)
    _check(out, count, width)
    _multiply(left, first * steps, steps, 1, right, 0, out, 0, count, steps, 1)  # type: ignore[call-arg]


@kernel
def add_outer(left: Any, first: int, count: int, right: Any, out: Any) -> None:
    """``out += left[first : first + count]ᵀ @ right[:count]``."""
    height, width = out.shape
    _check(left, first + count, height)
    _check(right, count, width)
    _multiply(left, first * height, 1, height, right, 0, out, 0, height, count, 1)  # type: ignore[call-arg]
