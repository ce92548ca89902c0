"""Scores against scikit-learn, intervals against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from mlet import metrics
from mlet.metrics import score
from mlet.task import TASKS


def sample(rows: int = 800) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    p = np.round(generator.uniform(0.02, 0.98, rows), 2)  # with ties
    return (generator.random(rows) < p).astype(int), p


def test_scores() -> None:
    y, p = sample()
    result = score(y, p)
    assert result.auc == pytest.approx(roc_auc_score(y, p))
    assert result.logloss == pytest.approx(log_loss(y, p))
    assert result.calibration == pytest.approx(p.sum() / y.sum())


def test_scores_at_the_borders() -> None:
    assert math.isnan(score([1, 1], [0.5, 0.6]).auc)
    assert math.isnan(score([0, 0], [0.5, 0.6]).calibration)
    assert math.isnan(score([], []).logloss)
    assert score([1, 0], [1.0, 0.0]).logloss < 1e-9
    assert score([0, 1], [1.0, 0.0]).logloss == pytest.approx(-math.log(1e-12), rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_bootstrap_equals_scoring_the_resampled_rows(seed: int) -> None:
    y, p = sample(60)
    intervals = TASKS["binary"]().intervals(y, p, samples=15, confidence=0.8, seed=seed)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(15):
        rows = generator.integers(60, size=60)
        draws.append(score(y[rows], p[rows]))
    for place, name in enumerate(metrics.Scores._fields):
        low, high = np.percentile([draw[place] for draw in draws], [10, 90])
        assert intervals[name].low == pytest.approx(low)
        assert intervals[name].high == pytest.approx(high)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(60):
        p = generator.uniform(0.1, 0.9, 300)
        y = (generator.random(300) < p).astype(int)
        low, high = TASKS["binary"]().intervals(y, p, samples=100, seed=trial)["calibration"]
        covered += low <= 1.0 <= high
    assert 50 <= covered <= 60


def test_an_interval_is_the_middle_of_what_is_known() -> None:
    values = np.array([*np.arange(101.0), math.nan])
    assert metrics.percentile_interval(values, 0.9) == pytest.approx((5, 95))
    assert all(math.isnan(end) for end in metrics.percentile_interval(np.array([math.nan])))
    y, p = sample()
    task = TASKS["binary"]()
    draws = task.resampled(y, p, samples=50)[:, 0]
    assert task.intervals(y, p, samples=50)["auc"] == tuple(np.percentile(draws, [2.5, 97.5]))
