"""Which tables are worth two layers, and how wide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlet.nn.inner_dim import InnerDim, TableSize, choose_inner_dims

ROOMY = 1 << 50


def choice(rows: int, dim: int, counts: object = None, budget: int = ROOMY) -> InnerDim:
    known = None if counts is None else np.asarray(counts)
    return choose_inner_dims({"user": TableSize(rows, dim, known)}, budget=budget)["user"]


def test_a_large_table_with_a_tail_gets_the_usual_k() -> None:
    assert choice(100_000, 4) == InnerDim(64)
    assert choice(1_000, 16, np.full(1_000, 5)) == InnerDim(64)


@pytest.mark.parametrize(
    ("rows", "dim", "counts", "why"),
    [
        (100_000, 32, None, "d = 32 is wide already"),
        (64, 4, None, "n = 64 is small"),
        (9_000, 1, None, "d = 1 has one direction only"),
        (100, 4, np.full(100, 5_000), "no tail: 0.0% of lookups have a category with < 100 rows"),
    ],
)
def test_tables_that_are_left_ordinary(rows: int, dim: int, counts: object, why: str) -> None:
    assert choice(rows, dim, counts) == InnerDim(None, why)


def test_the_tail_is_counted_in_lookups() -> None:
    counts = np.array([10_000] + [5] * 99)  # 495 of 10 495 lookups
    assert TableSize(100, 4, counts).tail == pytest.approx(495 / 10_495)
    assert choice(100, 4, counts) == InnerDim(64)
    assert TableSize(3, 4, np.zeros(3, int)).tail is None


def test_the_largest_table_gives_way_to_a_budget() -> None:
    tables = {"user": TableSize(1_000_000, 4), "film": TableSize(10_000, 4)}
    found = choose_inner_dims(tables, budget=4 * 32 * 1_100_000)
    assert found["film"] == InnerDim(64)
    assert found["user"].value == 32
    assert "above 140,800,000" in found["user"].reason
    found = choose_inner_dims(tables, budget=4 * 64 * 11_000)
    assert found["user"].value is None
    assert found["user"].reason.startswith("too large")
    assert found["film"] == InnerDim(64)


@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.builds(TableSize, st.integers(1, 10**7), st.integers(1, 128)),
        min_size=1,
    ),
    st.integers(1, 10**10),
)
def test_what_is_chosen_keeps_to_the_budget_and_is_wide_enough(
    tables: dict[str, TableSize], budget: int
) -> None:
    found = choose_inner_dims(tables, budget=budget)
    assert found.keys() == tables.keys()
    spent = 0
    for name, chosen in found.items():
        if chosen.value is None:
            assert chosen.reason
            continue
        assert 4 * tables[name].dim <= chosen.value <= 64
        spent += 4 * chosen.value * (tables[name].rows + tables[name].dim)
    assert spent <= budget


def test_no_budget_is_refused_rather_than_sought_for_ever() -> None:
    with pytest.raises(ValueError, match="a budget is bytes, at least 1, not -5"):
        choose_inner_dims({"a": TableSize(1_000, 8)}, budget=-5)
