"""Which of some points are chosen: exact, on made up trials."""

from __future__ import annotations

import pytest

from mlet.nn.compression import Precision
from mlet.studies.shrink.points import (
    RESTRICTIONS,
    Kind,
    Point,
    best_within,
    front,
    smallest,
)
from mlet.task import Binary

AUC, LOGLOSS = Binary().measures


def point(
    kind: Kind,
    trial: int,
    precision: Precision,
    size: int,
    auc: float,
    min_count: int = 1,
    exponent: float = 0.0,
) -> Point:
    setting = {"learning_rate": 0.1 * (trial + 1)}
    if kind != "slt":
        setting |= {"dim": 4, "min_count": min_count, "dim_exponent": exponent}
    return Point(kind, trial, setting, precision, size, size + 10, {"auc": auc, "logloss": 1 - auc})


REFERENCE = point("slt", 0, "float32", 1_000, 0.8)
POINTS = [
    REFERENCE,
    point("slt", 0, "int8", 300, 0.7998),
    point("single", 0, "float32", 500, 0.7996),
    point("single", 0, "int4", 120, 0.7980),
    point("single", 1, "float32", 250, 0.7997, min_count=5),
    point("single", 1, "int8", 110, 0.79955, min_count=5),
    point("two-layer", 0, "float32", 200, 0.8001),
    point("two-layer", 0, "int8", 90, 0.7999),
    point("two-layer", 0, "pq2", 40, 0.7950),
    point("two-layer", 1, "int8", 80, 0.7996, min_count=2, exponent=0.2),
]
BAR = 0.8 - 0.0005


def test_the_smallest_under_every_restriction() -> None:
    found = {
        name: smallest([p for p in POINTS if allowed(p)], AUC, BAR)
        for name, allowed in RESTRICTIONS.items()
    }
    sizes = {name: chosen and chosen.bytes for name, chosen in found.items()}
    assert sizes == {
        "all of it": 80,
        "without two layers": 110,
        "without quantization": 200,
        "without either": 250,
        "without shared rows": 90,
        "with one d for all fields": 90,
    }
    every = found["all of it"]
    assert every is not None
    after = smallest(POINTS, AUC, BAR, refuted=[every])
    assert after is not None
    assert after.bytes == 90, "the next one, where fresh seeds have found it worse"
    assert smallest(POINTS, AUC, 0.9) is None
    # Of equal sizes the better; a metric that is better lower is turned.
    twins = [point("single", 2, "int8", 80, auc) for auc in (0.7996, 0.7998)]
    assert smallest(twins, AUC, BAR) == twins[1]
    assert smallest(POINTS, LOGLOSS, -0.2003) == POINTS[7]


def test_the_best_within_bytes() -> None:
    assert best_within(POINTS, AUC, 100) == POINTS[7]
    assert best_within(POINTS, AUC, 89) == POINTS[9]
    assert best_within(POINTS, AUC, 10_000) == POINTS[6]
    assert best_within(POINTS, AUC, 39) is None


def test_the_front_has_what_nothing_as_small_is_as_good_as() -> None:
    sizes = [p.bytes for p in front(POINTS, AUC)]
    assert sizes == [40, 80, 90, 200]
    for one in POINTS:
        dominated = any(
            other.bytes <= one.bytes and other.scores["auc"] > one.scores["auc"] for other in POINTS
        )
        assert dominated != (one.bytes in sizes)
    assert [p.bytes for p in front(POINTS, LOGLOSS)] == sizes


def test_a_setting_is_one_whatever_its_precision() -> None:
    assert POINTS[0].key == POINTS[1].key != POINTS[2].key
    assert POINTS[2].key != POINTS[4].key


@pytest.mark.parametrize("name", RESTRICTIONS)
def test_restrictions_leave_the_reference(name: str) -> None:
    assert RESTRICTIONS[name](REFERENCE), "there is always something within the tolerance"
