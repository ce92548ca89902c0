"""Compile every CUDA kernel, in the variants the backend asks for, down to machine code.

Needs Triton, not a GPU. Run in a process of its own: Triton's interpreter must be off.
"""

from __future__ import annotations

import inspect
import sys
from itertools import product
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlet.engine.cuda import kernels

FLOAT, INT, BYTE = "*fp32", "*i64", "*u8"
SHAPE = {"k": 64, "d": 16, "BLOCK": 32, "BLOCK_K": 64, "BLOCK_D": 16}
SCALARS = dict.fromkeys(("lr", "decay", "eps", "beta1", "beta2"), "fp32") | {"seed": "i32"}
RULES = [
    method.value
    for method in (
        kernels.GRADIENT,
        kernels.SGD,
        kernels.ADAGRAD,
        kernels.ROWWISE_ADAGRAD,
        kernels.ADAM,
    )
]


def build(kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any]) -> None:
    names = list(inspect.signature(kernel.fn).parameters)
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]


def main(capability: int) -> int:
    pointers = {"rows": INT, "starts": INT, "projection": FLOAT}
    built = 0
    for table in (FLOAT, "*fp16", "*bf16"):
        types = {**pointers, "table": table, "vectors": FLOAT}
        build(kernels.project, capability, types, SHAPE)
        built += 1
    for weighted in (False, True):
        types = {"order": INT, "firsts": INT, "outputs": INT}
        types |= dict.fromkeys(("grad", "weights", "sums"), FLOAT)
        constants = {"d": 16, "WEIGHTED": weighted, "BLOCK_L": 16, "BLOCK_D": 16}
        build(kernels.sum_gradients, capability, types, constants)
        built += 1
    tables = ((FLOAT, 32), ("*fp16", 16), ("*bf16", 17))
    ways = ((True, True), (True, False), (False, False))
    for (table, bits), rule, (projected, shared) in product(tables, RULES, ways):
        types = {**pointers, **SCALARS, "table": table, "touched": BYTE}
        types |= dict.fromkeys(("sums", "partial", "rows_grad", "first", "second"), FLOAT)
        constants = {**SHAPE, "PROJECTED": projected, "SHARED": shared, "RULE": rule, "BITS": bits}
        build(kernels.update, capability, types, constants)
        built += 1
    return built


if __name__ == "__main__":
    print(main(int(sys.argv[1])), "kernels")
