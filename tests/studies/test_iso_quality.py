"""The iso-quality reduction: interpolated, never extrapolated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlet.studies import iso_quality


def test_interpolates_in_log_d() -> None:
    curve = {2: 0.70, 4: 0.72, 16: 0.80}
    exact = iso_quality(curve, 2, 0.76)  # half-way from 4 to 16 in log d: 8
    assert (exact.kind, exact.reduction) == ("exact", pytest.approx(4.0))
    assert str(exact) == "4×"
    assert iso_quality(curve, 4, 0.72).reduction == pytest.approx(1.0)


def test_outside_the_curve_gives_bounds_only() -> None:
    curve = {2: 0.70, 4: 0.72, 16: 0.80}
    assert str(iso_quality(curve, 4, 0.81)) == "> 4×"
    assert str(iso_quality(curve, 4, 0.69)) == "< 0.5×"
    assert str(iso_quality({8: 0.5}, 8, 0.6)) == "> 1×"


def test_a_wider_table_that_is_worse_counts_for_nothing() -> None:
    noisy = {2: 0.70, 4: 0.74, 8: 0.72, 16: 0.80}
    assert iso_quality(noisy, 2, 0.74).reduction == pytest.approx(2.0)
    assert iso_quality(noisy, 8, 0.73).reduction == pytest.approx(2**1.75 / 8)
    falling = {2: 0.71, 4: 0.70}
    assert str(iso_quality(falling, 4, 0.705)) == "< 0.5×"
    assert str(iso_quality(falling, 4, 0.72)) == "> 1×"


@given(
    st.lists(st.floats(0.5, 0.9), min_size=2, max_size=6),
    st.tuples(st.floats(0.5, 0.9), st.floats(0.5, 0.9)),
)
def test_better_quality_never_gives_a_smaller_reduction(
    values: list[float], pair: tuple[float, float]
) -> None:
    curve = {2**place: value for place, value in enumerate(values)}
    low, high = (iso_quality(curve, 1, quality) for quality in sorted(pair))
    assert low.reduction <= high.reduction + 1e-12
    assert 1 <= low.reduction <= 2 ** (len(values) - 1)


def test_needs_a_curve() -> None:
    with pytest.raises(ValueError, match="no single-layer results"):
        iso_quality({}, 2, 0.7)
