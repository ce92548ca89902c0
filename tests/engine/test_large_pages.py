"""Tables ask the system for large pages, and are what they are without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mlet
from mlet.engine import RuleName, empty_rows, new_state
from mlet.nn import Field, FieldEmbedding

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
ROWS, WIDTH = 100_000, 64  # 24 MiB


def flags_of(table: Tensor) -> list[str]:
    """What the system was told of the memory in a table's middle."""
    place = table.data_ptr() + table.numel() * table.element_size() // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= place < high
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError("no memory is there")


@pytest.mark.skipif(not _SYSTEM.exists(), reason="the system has no large pages")
def test_all_that_has_many_rows_asks() -> None:
    layer = mlet.Embedding(ROWS, 8, inner_dim=WIDTH)
    fields = FieldEmbedding([Field("a", ROWS, 16, WIDTH), Field("b", ROWS, 64)])
    tables = [layer.inner, *(p for p in fields.parameters() if len(p) >= ROWS)]
    states = [s for table in tables for s in new_state(RuleName.ADAM, table.detach()).values()]
    assert len(tables) == 3
    for table in (*tables, *states):
        assert "hg" in flags_of(table)


def test_it_is_torch_empty() -> None:
    assert empty_rows((0, 4)).shape == (0, 4)
    assert empty_rows((ROWS, WIDTH), torch.bfloat16).dtype == torch.bfloat16
    assert empty_rows((3, 2), device="meta").is_meta
    assert empty_rows((3, 2)).dtype == torch.get_default_dtype()
    table = empty_rows((ROWS, WIDTH)).fill_(1.5)
    assert bool((table == 1.5).all())


def test_states_begin_at_zero() -> None:
    for state in new_state(RuleName.ADAGRAD, torch.empty(ROWS, WIDTH)).values():
        assert not bool(state.any())
