"""Claims: every arm gets the same number of trials, whoever works on it and whatever dies."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from mlet.errors import RunError
from mlet.liveness import is_alive, started
from mlet.studies import StudyConfig
from mlet.studies.ledger import Claim, Ledger
from mlet.studies.trials import is_final

TRIALS, SEEDS = 4, 2


def study(**tuning: object) -> StudyConfig:
    return StudyConfig.parse(
        {
            "datasets": {"clicks": {"synthetic": {}}},
            "models": ["dlrm"],
            "optimizers": ["adagrad"],
            "dims": [2],
            "inner_dims": [8],
            "seeds": SEEDS,
            "tuning": {"trials": TRIALS, **tuning},
        },
        "study",
    )


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def quality(claim: Claim) -> float:
    """A made-up validation AUC with its best at a step size of 0.03."""
    return 0.8 - 0.01 * abs(math.log(claim.setting["learning_rate"] / 0.03))


def work(ledger: Ledger, config: StudyConfig) -> list[Claim]:
    claims = []
    for arm in config.arms():
        while (claim := ledger.claim(arm)) is not None:
            claims.append(claim)
            ledger.complete(claim, quality(claim))
    return claims


def test_all_arms_try_as_many_settings_and_start_from_the_same(tmp_path: Path) -> None:
    config = study()
    ledger = Ledger(config, url(tmp_path))
    claims = work(ledger, config)
    first, second = config.arms()
    tuned = {
        arm.name: [c for c in claims if c.arm == arm and not c.final] for arm in (first, second)
    }
    assert [len(found) for found in tuned.values()] == [TRIALS, TRIALS]
    low, high = config.rates(first)
    spread = [c.setting["learning_rate"] for c in tuned[first.name]][:3]
    assert spread == [c.setting["learning_rate"] for c in tuned[second.name]][:3]
    shares = [math.log(rate / low) / math.log(high / low) for rate in spread]
    assert shares == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    for arm in config.arms():
        best = max(tuned[arm.name], key=quality)
        finals = [c for c in claims if c.arm == arm and c.final]
        assert [c.seed for c in finals] == list(range(SEEDS))
        assert all(c.setting == best.setting for c in finals)
        assert ledger.done(arm)
        assert ledger.chosen(arm) == best.setting
        assert all(low <= c.setting["learning_rate"] <= high for c in tuned[arm.name])


def test_an_arm_is_tuned_one_trial_after_another(tmp_path: Path) -> None:
    config = study()
    ledger = Ledger(config, url(tmp_path))
    arm = config.arms()[0]
    claim = ledger.claim(arm)
    assert claim is not None
    assert ledger.claim(arm) is None
    assert Ledger(config, url(tmp_path)).claim(arm) is None, "nor on another machine"
    ledger.complete(claim, 0.7)
    assert Ledger(config, url(tmp_path)).claim(arm) is not None


def test_an_interrupted_study_tries_what_it_would_have_tried(tmp_path: Path) -> None:
    config = study(weight_decay=[1e-6, 1e-3])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = work(Ledger(config, url(tmp_path / "a")), config)
    settings = []
    for arm in config.arms():
        while True:
            ledger = Ledger(config, url(tmp_path / "b"))
            lost = ledger.claim(arm)
            if lost is None:
                break
            ledger.give_back(lost)
            claim = Ledger(config, url(tmp_path / "b")).claim(arm)
            assert claim is not None
            assert (claim.setting, claim.seed, claim.final) == (lost.setting, lost.seed, lost.final)
            ledger.complete(claim, quality(claim))
            settings.append((claim.arm, dict(claim.setting), claim.seed))
    assert settings == [(c.arm, dict(c.setting), c.seed) for c in whole]


def test_a_setting_that_fails_with_some_seed_is_not_chosen(tmp_path: Path) -> None:
    config = study()
    ledger = Ledger(config, url(tmp_path))
    arm = config.arms()[0]
    failed = None
    while (claim := ledger.claim(arm)) is not None:
        if claim.final and claim.seed == 1 and failed is None:
            failed = claim.setting
            ledger.fail(claim, "the loss is nan at step 3")
        else:
            ledger.complete(claim, quality(claim))
    assert failed is not None
    chosen = ledger.chosen(arm)
    assert chosen is not None
    assert chosen != failed
    assert [trial.params for trial in ledger.finals(arm)] == [chosen] * SEEDS
    assert ledger.done(arm)


def test_an_arm_whose_settings_all_fail_is_done_without_a_result(tmp_path: Path) -> None:
    config = study()
    ledger = Ledger(config, url(tmp_path))
    arm, other = config.arms()
    while (claim := ledger.claim(arm)) is not None:
        ledger.fail(claim, "diverged")
    assert ledger.chosen(arm) is None
    assert ledger.done(arm)
    assert len(ledger.trials(arm)) == TRIALS
    assert ledger.claim(other) is not None


def test_a_run_whose_process_was_killed_is_tried_once_more(tmp_path: Path) -> None:
    config = study()
    ledger = Ledger(config, url(tmp_path))
    arm = config.arms()[0]
    first = ledger.claim(arm)
    assert first is not None
    ledger.lose(first, "killed")
    second = ledger.claim(arm)
    assert second is not None
    assert second.setting == first.setting
    ledger.lose(second, "killed")
    third = ledger.claim(arm)
    assert third is not None
    assert third.setting != first.setting
    assert ledger.trials(arm)[0].user_attrs["reason"] == "killed"


def test_claims_of_dead_processes_are_given_back(tmp_path: Path) -> None:
    config = study()
    Ledger(config, url(tmp_path))
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_ledger as t\n"
        "c = t.study(); t.Ledger(c, sys.argv[1]).claim(c.arms()[0])"
    )
    command = [sys.executable, "-c", script, url(tmp_path), str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=120)
    ledger = Ledger(config, url(tmp_path))
    arm = config.arms()[0]
    assert ledger.claim(arm) is None
    ledger.recover(arm, take_over=False)
    mine = ledger.claim(arm)
    assert mine is not None
    ledger.recover(arm, take_over=False)
    assert ledger.claim(arm) is None, "this process is alive"
    ledger.recover(arm, take_over=True)
    assert ledger.claim(arm) is not None


def test_a_process_with_the_number_of_a_dead_one_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is started again gives its command the same number."""
    ledger = Ledger(study(), url(tmp_path))
    arm = study().arms()[0]
    with monkeypatch.context() as earlier:
        earlier.setattr("mlet.studies.ledger.started", lambda: started() - 60)
        assert ledger.claim(arm) is not None
    ledger.recover(arm, take_over=False)
    assert ledger.claim(arm) is not None


def test_who_is_alive() -> None:
    assert is_alive(os.getpid(), started())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = started(child.pid)
    assert is_alive(child.pid, began)
    assert not is_alive(child.pid, began - 60)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child.pid, began), "it ended, though nobody waited for it"
    child.communicate()
    assert not is_alive(child.pid, began)


def test_final_runs_are_not_mistaken_for_tuning(tmp_path: Path) -> None:
    config = study()
    ledger = Ledger(config, url(tmp_path))
    work(ledger, config)
    for arm in config.arms():
        finals = [is_final(trial) for trial in ledger.trials(arm)]
        assert finals == [False] * TRIALS + [True] * SEEDS


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be opened"):
        Ledger(study(), f"sqlite:///{tmp_path / 'nowhere' / 'study.db'}")
    with pytest.raises(RunError, match="cannot be opened"):
        Ledger(study(), "no url at all")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trial_values SET value = value - 0.3 WHERE trial_id = 1",
        "UPDATE trial_params SET param_value = param_value * 1.5 WHERE trial_id = 2",
        "UPDATE trials SET state = 'FAIL' WHERE trial_id = 1",
        "UPDATE trial_user_attributes SET value_json = '1' WHERE key = 'seed' AND trial_id = 3",
        "UPDATE trial_user_attributes SET value_json = 'true' WHERE key = 'final' AND trial_id = 1",
        "UPDATE trial_user_attributes SET value_json = '\"\"' WHERE key = 'reason'",
        "UPDATE trial_user_attributes SET key = 'voix' WHERE key = 'void'",
        "UPDATE trial_user_attributes SET key = 'seam' WHERE key = 'seal' AND trial_id = 3",
        "UPDATE trial_user_attributes SET value_json = '{' WHERE trial_id = 2",
        "UPDATE trial_params SET distribution_json = 'no'",
        "DELETE FROM trial_values WHERE trial_id = 1",
        "UPDATE trials SET state = 'NONE' WHERE trial_id = 2",
    ],
)
def test_a_changed_database_is_refused(tmp_path: Path, change: str) -> None:
    config = study()
    ledger = Ledger(config, url(tmp_path))
    arm = config.arms()[0]
    for outcome in (0.7, 0.6, None, "lost"):
        claim = ledger.claim(arm)
        assert claim is not None
        if outcome is None:
            ledger.fail(claim, "diverged")
        elif outcome == "lost":
            ledger.give_back(claim)
        else:
            ledger.complete(claim, float(outcome))
    assert len(Ledger(config, url(tmp_path)).trials(arm)) == 3
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        assert database.execute(change).rowcount > 0
    ledger = Ledger(config, url(tmp_path))
    with (
        pytest.raises(RunError, match=r"study\.db: damaged .*give the command again"),
        ledger.named_failures(),
    ):
        ledger.trials(arm)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_truncated_database_is_refused(tmp_path: Path, keep: float) -> None:
    config = study()
    work(Ledger(config, url(tmp_path)), config)
    file = tmp_path / "study.db"
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])

    def read() -> None:
        ledger = Ledger(config, url(tmp_path))
        with ledger.named_failures():
            for arm in config.arms():
                ledger.trials(arm)

    with pytest.raises(RunError, match=r"study\.db: (damaged|cannot be opened)"):
        read()


def test_a_study_begun_by_mlet_0_1_goes_on(tmp_path: Path) -> None:
    """Its trials carry no seals; those that are added do."""
    config = study()
    ledger = Ledger(config, url(tmp_path))
    arm = config.arms()[0]
    claim = ledger.claim(arm)
    assert claim is not None
    ledger.complete(claim, 0.7)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("DELETE FROM trial_user_attributes WHERE key LIKE '%seal'")
    ledger = Ledger(config, url(tmp_path))
    claim = ledger.claim(arm)
    assert claim is not None
    ledger.complete(claim, 0.6)
    assert [trial.value for trial in Ledger(config, url(tmp_path)).trials(arm)] == [0.7, 0.6]
