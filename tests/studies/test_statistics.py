"""t-intervals against scipy."""

from __future__ import annotations

import pytest
from scipy import stats

from mlet.studies.statistics import Estimate, estimate


def test_interval() -> None:
    values = [0.71, 0.74, 0.72]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    result = estimate(values)
    assert (result.mean - result.margin, result.mean + result.margin) == pytest.approx((low, high))


def test_text() -> None:
    assert str(Estimate(0.71234, 0.00456)) == "0.7123 ±0.0046"
    assert Estimate(0.01, None).signed() == "+0.0100"
    assert estimate([0.5]) == Estimate(0.5, None)
    with pytest.raises(ValueError, match="no values"):
        estimate([])
