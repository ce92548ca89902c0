"""Tables that the engine looks up in a model under ``torch.compile``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from mlet.engine import Lookups
from mlet.nn.field_tables import FieldTables

#: What torch says where a graph was to be in one part; older versions do not take it.
_WHY = {
    "reason": "tables of a fused optimizer are looked up by mlet's engine, outside the graph: "
    "leave fullgraph=True out of torch.compile, or train with torch's own optimizer"
}
if "reason" not in inspect.signature(torch.compiler.disable).parameters:
    _WHY = {}


@torch.compiler.disable(**_WHY)  # type: ignore[untyped-decorator]
def look_up_outside(
    tables: FieldTables, ids: Tensor, bags: Sequence[tuple[Tensor, Tensor]], mean: Sequence[bool]
) -> Tensor:
    """Vectors (B, T, d), for a fused optimizer; the compiled graph is in two parts around them."""
    vectors: Tensor = tables(Lookups.gather(ids, bags, mean))
    return vectors


@torch.compiler.disable(**_WHY)  # type: ignore[untyped-decorator]
def each_outside(tables: FieldTables, values: Tensor, starts: Sequence[int]) -> Tensor:
    """The same of vectors that are not pooled, (V × d)."""
    vectors: Tensor = tables(Lookups.of_each(values, starts))
    return vectors
