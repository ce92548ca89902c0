"""Which trials a search claims: likely settings, d by field among them; earlier searches go on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlet.nn.compression import PRECISIONS
from mlet.studies.ledger import Claim
from mlet.studies.shrink.ledger import SearchLedger
from mlet.studies.shrink.study import ShrinkStudy
from mlet.studies.study import Arm
from mlet.training import RunConfig

TRIALS = 8


@pytest.fixture(scope="module")
def study(small_data: Path) -> ShrinkStudy:
    base = {"data": str(small_data), "model": {"name": "fm"}}
    tuning = {"trials": TRIALS}
    return ShrinkStudy.of(RunConfig.parse(base, "test"), 32, tolerance=0.001, tuning=tuning)


def complete(ledger: SearchLedger, claim: Claim) -> None:
    """As if wide models were better, and narrower ones smaller."""
    dim = claim.setting.get("dim", 32) * (1 - claim.setting.get("dim_exponent", 0.0))
    auc = 0.8 - 0.1 / dim
    points = [
        {
            "precision": precision,
            "bytes": int(1_000 * dim) // (1 + place),
            "model_bytes": 0,
            "scores": {"auc": auc - 0.001 * place, "logloss": 0.5},
        }
        for place, precision in enumerate(PRECISIONS)
    ]
    ledger.complete(claim, auc, points=points)


def claims(ledger: SearchLedger, arm: Arm, count: int) -> list[Claim]:
    found = []
    for _ in range(count):
        claim = ledger.claim(arm)
        assert claim is not None
        complete(ledger, claim)
        found.append(claim)
    return found


@pytest.fixture(scope="module")
def tried(study: ShrinkStudy, tmp_path_factory: pytest.TempPathFactory) -> SearchLedger:
    """A search of one layer, all of whose trials are done."""
    ledger = SearchLedger(study, f"sqlite:///{tmp_path_factory.mktemp('search') / 'study.db'}")
    reference, single, _ = study.arms()
    assert ledger.claim(single) is None, "searches wait for the reference"
    claims(ledger, reference, TRIALS)
    claims(ledger, single, TRIALS)
    assert ledger.claim(single) is None, "as many as the reference has"
    return ledger


def test_the_first_trials_are_likely_ones(study: ShrinkStudy, tried: SearchLedger) -> None:
    known = tried.reference().params
    settings = [trial.params for trial in tried.trials(study.arms()[1])]
    for setting in settings[:3]:
        assert known.items() <= setting.items()
    assert [(one["dim"], one["dim_exponent"]) for one in settings[:3]] == [
        (16, 0.0),
        (8, 0.0),
        (32, 0.1),  # one d of 32 for all is the reference's own
    ]
    assert {one["dim_exponent"] for one in settings} <= {0.0, 0.1, 0.2, 0.3}


def test_a_search_that_begins_anew_tries_the_same(
    study: ShrinkStudy, tried: SearchLedger, tmp_path: Path
) -> None:
    ledger = SearchLedger(study, f"sqlite:///{tmp_path / 'study.db'}")
    reference, single, _ = study.arms()
    claims(ledger, reference, TRIALS)
    again = [claim.setting for claim in claims(ledger, single, TRIALS)]
    assert again == [trial.params for trial in tried.trials(single)]


def test_a_search_that_knew_one_d_alone_goes_on(
    study: ShrinkStudy, tried: SearchLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials count, as those that have one d for all fields."""
    reference, single, _ = study.arms()
    earlier = {k: v for k, v in study.searched(single).items() if k != "dim_exponent"}
    settings = [dict(trial.params) for trial in tried.trials(single)]
    for setting in settings:
        setting.pop("dim_exponent")
    ledger = SearchLedger(study, f"sqlite:///{tmp_path / 'study.db'}")
    claims(ledger, reference, TRIALS)
    with monkeypatch.context() as patch:
        patch.setattr(ShrinkStudy, "searched", lambda self, arm: earlier)
        patch.setattr(SearchLedger, "_spread", lambda self, arm: settings)
        claims(ledger, single, TRIALS - 2)
    claims(ledger, single, 2)
    known = [trial.params for trial in ledger.trials(single)]
    assert ["dim_exponent" in params for params in known] == [False] * (TRIALS - 2) + [True] * 2


def test_a_model_is_given_up_for_what_is_no_larger(tried: SearchLedger) -> None:
    def trial(dim: int, exponent: float | None, count: int = 1) -> Any:
        more = {} if exponent is None else {"dim_exponent": exponent}
        return SimpleNamespace(params={"dim": dim, "min_count": count, **more})

    compares = tried._compares
    assert compares(trial(8, 0.2), trial(8, 0.1))
    assert compares(trial(8, 0.1), trial(16, 0.1))
    assert compares(trial(8, 0.1), trial(8, None))
    assert not compares(trial(8, 0.1), trial(8, 0.2))
    assert not compares(trial(8, None), trial(16, 0.1))
    assert not compares(trial(8, 0.2), trial(8, 0.1, count=2))
