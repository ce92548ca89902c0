"""Products of small matrices in registers, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError

from mlet.engine.cpu.multiply import add_outer, add_product, product

side = st.integers(0, 40)


@settings(max_examples=150, deadline=None)
@given(rows=side, steps=side, width=side, first=st.integers(0, 3), seed=st.integers(0, 9))
def test_as_in_float64(rows: int, steps: int, width: int, first: int, seed: int) -> None:
    generator = np.random.default_rng(seed)

    def drawn(*shape: int) -> Any:
        return generator.normal(size=shape).astype(np.float32)

    left, right, out = drawn(first + rows + 2, steps), drawn(steps, width), drawn(rows + 5, width)
    part = left[first : first + rows].astype(np.float64)
    expected = out.copy()
    expected[2 : 2 + rows] = part @ right
    product(left, first, rows, right, out, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)

    expected[:rows] += part @ right
    add_product(left, first, rows, right, out)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)

    tall, total = drawn(rows + 1, width), drawn(steps, width)
    expected = total + part.T @ tall[:rows]
    add_outer(left, first, rows, tall, total)
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def test_infinities_and_nan_stay_where_they_are() -> None:
    left = np.ones((5, 6), np.float32)
    left[1, 2], left[3, 4] = np.inf, np.nan
    out = np.zeros((5, 17), np.float32)
    product(left, 0, 5, np.ones((6, 17), np.float32), out, 0)
    assert np.isinf(out[1]).all()
    assert np.isnan(out[3]).all()
    assert (out[[0, 2, 4]] == 6.0).all()


def test_only_contiguous_float32_is_taken() -> None:
    right, out = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    for left in (np.ones((2, 3)), np.ones((3, 2), np.float32).T):
        with pytest.raises(TypingError, match="not a contiguous float32 matrix"):
            product(left, 0, 2, right, out, 0)
