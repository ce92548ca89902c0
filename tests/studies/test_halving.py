"""Successive halving: the rule against its definition, the ledger's part, a study that uses it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.errors import ConfigError, RunError
from mlet.studies import StudyConfig, sweep
from mlet.studies.halving import Halving
from mlet.studies.ledger import Claim, Ledger
from mlet.studies.trials import is_final

TRIALS, SEEDS = 6, 2


def study(data: Path | None = None, **tuning: object) -> StudyConfig:
    return StudyConfig.parse(
        {
            "datasets": {"clicks": {"prepared": str(data)} if data else {"synthetic": {}}},
            "models": {"dlrm": {"bottom_mlp": [8], "top_mlp": [8]}},
            "optimizers": {"adagrad": {"tables": {"name": "adagrad"}}},
            "dims": [2],
            "inner_dims": [8],
            "seeds": SEEDS,
            "tuning": {"trials": TRIALS, "span": 64, "halving": {"factor": 2}, **tuning},
            "training": {"epochs": 2, "batch_size": 128, "patience": None},
            "resamples": 20,
        },
        "study",
    )


def goes_on(rule: Halving, found: list[float], before: list[list[float]]) -> bool:
    """The definition, for the last value of ``found``."""
    rung = rule.first
    while rung < len(found):
        rung *= rule.factor
    if rung > len(found):
        return True
    values = sorted([max(trial[:rung]) for trial in before if len(trial) >= rung] + [max(found)])
    return max(found) >= values[-max(1, len(values) // rule.factor)]


@settings(max_examples=60, deadline=None)
@given(
    factor=st.integers(2, 4),
    first=st.integers(1, 3),
    trials=st.lists(st.lists(st.integers(0, 20), min_size=9, max_size=9), min_size=1, max_size=6),
)
def test_a_trial_goes_on_while_it_is_among_the_best(
    factor: int, first: int, trials: list[list[int]]
) -> None:
    before: list[list[float]] = []
    for trial in trials:
        rule, found = Halving(factor, first, before), []
        for value in trial:
            found.append(value / 20)
            expected = goes_on(rule, found, before)
            assert rule.gives_up(found) == (not expected)
            if not expected:
                break
        before.append(found)


def test_what_a_trial_has_kept_counts_not_what_it_has_become() -> None:
    steady, overfit = [0.60, 0.70, 0.71, 0.71], [0.65, 0.78, 0.60, 0.50]
    assert not Halving(2, 2, [steady]).gives_up(overfit)
    assert Halving(2, 2, [overfit]).gives_up(steady)


def claimed(ledger: Ledger, config: StudyConfig) -> list[Claim]:
    """All claims of the first arm; a trial's quality rises on the way, to more the smaller η is."""
    claims = []
    (arm, _) = config.arms()
    while (claim := ledger.claim(arm)) is not None:
        claims.append(claim)
        end = 0.9 - claim.setting["learning_rate"]
        curve: list[float] = []
        while len(curve) < 8:
            curve.append(end - 0.5 ** len(curve))
            if claim.halving and claim.halving.gives_up(curve):
                break
        if len(curve) == 8:
            ledger.complete(claim, end, () if claim.final else curve)
        else:
            ledger.prune(claim, curve)
    return claims


def test_what_is_given_up_counts_as_tried_and_is_not_chosen(tmp_path: Path) -> None:
    config = study()
    ledger = Ledger(config, f"sqlite:///{tmp_path / 'study.db'}")
    claims = claimed(ledger, config)
    arm = config.arms()[0]
    trials = ledger.tuning(arm)
    states = [trial.state.name for trial in trials]
    assert len(trials) == TRIALS
    assert states[0] == "COMPLETE", "the first is compared with nothing"
    assert "PRUNED" in states
    done = [t for t in trials if t.state.name == "COMPLETE"]
    assert ledger.chosen(arm) == max(done, key=lambda t: t.value or 0.0).params
    assert ledger.done(arm)
    finals = [claim for claim in claims if claim.final]
    assert finals
    assert all(claim.halving is None for claim in finals), "final runs are whole"
    low, high = config.rates(arm)
    first = claims[0].setting["learning_rate"]
    assert (low**2 * high) ** (1 / 3) < first < (low * high**2) ** (1 / 3), "from the middle out"


def test_how_trials_went_is_sealed(tmp_path: Path) -> None:
    config = study()
    claimed(Ledger(config, f"sqlite:///{tmp_path / 'study.db'}"), config)
    change = "UPDATE trial_intermediate_values SET intermediate_value = 0.99 WHERE step = 1"
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        assert database.execute(change).rowcount > 0
    ledger = Ledger(config, f"sqlite:///{tmp_path / 'study.db'}")
    with pytest.raises(RunError, match="damaged"), ledger.named_failures():
        ledger.trials(config.arms()[0])


@pytest.mark.slow
def test_a_study_with_halving(mlet, small_data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = study(small_data)
    (tmp_path / "study.yaml").write_text(config.to_yaml())
    mlet("sweep", tmp_path / "study.yaml", "--out", tmp_path / "out", "--jobs", "1")
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    ledger = Ledger(config, f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    for arm, entry in zip(config.arms(), found["panels"][0]["arms"], strict=True):
        trials = ledger.tuning(arm)
        pruned = [t for t in trials if t.state.name == "PRUNED"]
        assert entry["tuning"]["tried"] == TRIALS == len(trials)
        assert entry["tuning"]["given_up"] == len(pruned) > 0
        folder = tmp_path / "out" / "runs" / arm.name
        ended = [path.parent for path in folder.glob("*/summary.json")]
        assert len(ended) == TRIALS - len(pruned) + SEEDS - 1
        given_up = [path for path in folder.iterdir() if path not in ended]
        assert len(given_up) == len(pruned)
        for path in given_up:
            assert len((path / "metrics.jsonl").read_text().splitlines()) in (2, 4)
            assert not (path / "checkpoints").exists()
    assert "given up early" in (tmp_path / "out" / "tables.md").read_text()
    before = yaml.safe_load((tmp_path / "out" / "study.json").read_text())["panels"]
    sweep(config, tmp_path / "out", jobs=1)  # nothing is left to do, the numbers stay
    assert json.loads((tmp_path / "out" / "study.json").read_text())["panels"] == before
    assert all(t.state.name != "RUNNING" for arm in config.arms() for t in ledger.trials(arm))
    assert sum(is_final(t) for arm in config.arms() for t in ledger.trials(arm)) == 2 * SEEDS


@pytest.mark.parametrize("halving", [{"factor": 1}, {"first": 0}, 3])
def test_impossible_halvings_are_refused(halving: object) -> None:
    with pytest.raises(ConfigError, match="halving"):
        study(halving=halving)
