"""What claims, tables and sentences say of the cases that are easily confused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import made_up, mlet
from test_ledger import SEEDS, TRIALS, quality, study, url

from mlet.data import PreparedDataset
from mlet.data.frequency import training_count_deciles
from mlet.studies import CompareConfig, StudyConfig, iso_quality
from mlet.studies.arm_table import arm_rows, compare_columns, reduction_rows, tuning_row
from mlet.studies.datasets import DatasetConfig, make_ready
from mlet.studies.ledger import Claim, Ledger
from mlet.studies.methods import SLT
from mlet.studies.reductions import reduction, resampled_reductions
from mlet.studies.results import StudyResult, _at_edge
from mlet.studies.verdict import _range, panel_verdict


def claims(tmp_path: Path) -> tuple[Ledger, StudyConfig]:
    config = study()
    return Ledger(config, url(tmp_path)), config


def tuned(ledger: Ledger, config: StudyConfig, trials: int = TRIALS) -> None:
    for _ in range(trials):
        claim = ledger.claim(config.arms()[0])
        assert claim is not None
        assert not claim.final
        ledger.complete(claim, quality(claim))


def test_claims_of_other_machines_are_not_given_back(tmp_path: Path) -> None:
    ledger, config = claims(tmp_path)
    arm = config.arms()[0]
    script = (
        "import socket, sys; socket.gethostname = lambda: 'elsewhere'\n"
        "sys.path.insert(0, sys.argv[2]); import test_ledger as t\n"
        "c = t.study(); t.Ledger(c, sys.argv[1]).claim(c.arms()[0])"
    )
    command = [sys.executable, "-c", script, url(tmp_path), str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=120)
    ledger.recover(arm, take_over=False)
    assert ledger.claim(arm) is None, "whether it runs there is not known here"
    ledger.recover(arm, take_over=True)
    assert ledger.claim(arm) is not None


def test_final_runs_wait_for_the_last_trial(tmp_path: Path) -> None:
    ledger, config = claims(tmp_path)
    arm = config.arms()[0]
    tuned(ledger, config, TRIALS - 1)
    last = ledger.claim(arm)
    assert last is not None
    assert ledger.claim(arm) is None
    ledger.complete(last, 0.9)
    final = ledger.claim(arm)
    assert final is not None
    assert final.final
    assert final.setting == last.setting


def test_of_two_that_claim_one_run_the_first_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, config = claims(tmp_path)
    arm = config.arms()[0]
    tuned(ledger, config)
    setting = ledger.chosen(arm)
    assert setting is not None
    numbers: list[int] = []

    def noted(arm: object, number: int, seed: int | None) -> Claim | None:
        numbers.append(number)
        return None

    decide = ledger._unless_rivalled
    monkeypatch.setattr(ledger, "_unless_rivalled", noted)
    for _ in range(2):  # both add their claim before either looks
        ledger._add(arm, setting, 1)
    second, first = decide(arm, numbers[1], 1), decide(arm, numbers[0], 1)
    assert second is None
    assert first is not None


def test_a_kill_counts_for_its_own_seed(tmp_path: Path) -> None:
    ledger, config = claims(tmp_path)
    arm = config.arms()[0]
    tuned(ledger, config)
    for _ in range(SEEDS):
        claim = ledger.claim(arm)
        assert claim is not None
        ledger.lose(claim, "killed")
        again = ledger.claim(arm)
        assert again is not None
        assert (again.seed, again.setting) == (claim.seed, claim.setting)
        ledger.complete(again, 0.8)
    assert ledger.done(arm)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.01, True), (0.0105, True), (0.1, False), (0.5, False), (0.97, True), (1.0, True)],
)
def test_both_ends_of_a_range_are_edges(rate: float, expected: bool) -> None:
    assert _at_edge(rate, (0.01, 1.0)) is expected
    assert not _at_edge(0.01, (0.01, 0.01))


def test_the_quality_of_an_end_of_the_curve_is_reached() -> None:
    curve = {2: 0.7, 4: 0.8}
    assert str(iso_quality(curve, 2, 0.8)) == "2×"
    assert str(iso_quality(curve, 2, 0.7)) == "1×"
    assert str(iso_quality(curve, 2, 0.8001)) == "> 2×"
    assert str(iso_quality(curve, 2, 0.6999)) == "< 1×"


AUC = {
    (SLT, 4): [0.60, 0.61], (SLT, 2): [0.50, 0.51], (SLT, 8): [0.65, 0.66],
    (mlet(16), 4): [0.62, 0.631], (mlet(16), 2): [0.55, 0.561], (mlet(32), 4): [0.58, 0.591],
}  # fmt: skip


def test_the_interval_of_a_reduction_is_the_middle_95_percent(small_data: Path) -> None:
    three = {key: [*values, values[0] + 0.005] for key, values in AUC.items()}
    _, panel = made_up(small_data, three, 0.02)
    noisy = np.random.default_rng(0).normal(0, 0.01, (3, 200, 2))
    arms = tuple(
        replace(arm, resamples=arm.resamples + (noisy if arm.method != SLT else 0))
        for arm in panel.arms
    )
    panel = replace(panel, arms=arms)
    arm = next(arm for arm in panel.arms if (arm.method, arm.dim) == (mlet(16), 4))
    order = {"below": 0, "exact": 1, "above": 2}
    found = sorted(
        resampled_reductions(panel, arm), key=lambda one: (order[one.kind], one.reduction)
    )
    interval = reduction(panel, arm)
    assert interval is not None
    assert interval.interval == (found[5], found[194])
    assert found[5] != found[10]


def test_resamples_without_a_metric_are_left_out(small_data: Path) -> None:
    _, panel = made_up(small_data, AUC, 0.01)
    for arm in panel.arms:
        arm.resamples[:, 7] = np.nan
    arm = next(arm for arm in panel.arms if arm.method == mlet(16))
    assert len(resampled_reductions(panel, arm)) == 199


def test_rows_of_a_table_rise_and_edges_are_marked(small_data: Path) -> None:
    _, panel = made_up(small_data, AUC, 0.01)
    columns = compare_columns(panel.task)
    rows = [dict(zip(columns, row, strict=True)) for row in arm_rows(panel, columns)]
    assert [row["d"] for row in rows] == ["2", "2", "4", "4", "4", "8"]
    assert {row["lr"] for row in rows} == {"0.02"}
    _, edged = made_up(small_data, AUC, 0.01, at_edge=True)
    marked = [dict(zip(columns, row, strict=True)) for row in arm_rows(edged, columns)]
    assert {row["lr"] for row in marked} == {"0.02!"}
    arm = panel.arms[0]
    assert (arm.seconds, arm.step_milliseconds) == (2.0, 200.0)


def test_sentences_are_of_their_own_k(small_data: Path) -> None:
    _, panel = made_up(small_data, AUC, 0.01)
    sentences = " ".join(panel_verdict(panel))
    assert "MLET with k=16 beat SLT" in sentences
    assert "MLET with k=32 was worse than SLT" in sentences
    assert "k=32 beat" not in sentences
    arms = [panel.mlet[place] for place in (0, 1, 2)]
    gains = sorted(panel.gain(arm).mean for arm in arms)
    for order in (arms, arms[::-1], arms[1:] + arms[:1]):
        assert _range(panel, order) == f"{gains[0]:+.4f} to {gains[-1]:+.4f} AUC"


def result(config: StudyConfig, *panels: object) -> StudyResult:
    return StudyResult(config, panels, (), {}, 1.0, 1, "here")  # type: ignore[arg-type]


def test_a_method_without_arms_has_no_row(small_data: Path) -> None:
    config, panel = made_up(small_data, AUC, 0.01)
    slt = replace(panel, arms=tuple(arm for arm in panel.arms if arm.method == SLT))
    assert reduction_rows(result(config, slt, replace(slt, model="fm"))) == []
    rows = reduction_rows(result(config, panel, replace(slt, model="fm")))
    assert [(row[2], row[3]) for row in rows] == [("dlrm", "mlet-k16"), ("all", "mlet-k16")]


def test_failures_of_tuning_are_counted(small_data: Path) -> None:
    config, panel = made_up(small_data, AUC, 0.01)
    failing = replace(panel.arms[0], tuning=replace(panel.arms[0].tuning, failed=(0.5, 0.7)))
    panel = replace(panel, arms=(failing, *panel.arms[1:]))
    assert tuning_row(result(config, panel)) == ("6", "6", "0", "2", "0", "12")


def test_inner_dims_of_single_fields_are_of_two_layer_arms(small_data: Path) -> None:
    values = {
        "datasets": {"a": {"prepared": str(small_data)}},
        "models": {"fm": {"inner_dims": {"C1": 7}}},
        "optimizers": ["sgd"], "dims": [2], "inner_dims": [8],
    }  # fmt: skip
    config = StudyConfig.parse(values, "test")
    for arm in config.arms():
        run = config.run(arm, {"learning_rate": 0.1}, 0, small_data)
        assert run.model.inner_dims == ({"C1": 7} if arm.method.kind == "mlet" else {})


def test_a_comparison_passes_everything_on(small_data: Path) -> None:
    values = {"base": {"data": str(small_data)}, "dims": [2], "inner_dims": [8], "rare_below": 3}
    config = CompareConfig.parse({**values, "seeds": 5}, "test").study()
    assert (config.rare_below, config.seeds, config.dims, config.inner_dims) == (3, 5, [2], [8])


def test_the_minimum_count_of_a_study_s_data_counts(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 50):
        config = DatasetConfig.parse({"synthetic": {"rows": 500}, "min_count": count}, "data")
        data = PreparedDataset(make_ready(config, tmp_path / str(count), lambda *_: None))
        assert {field.min_count for field in data.schema.fields} == {count}
        sizes.append(sum(field.num_categories for field in data.schema.fields))
    assert sizes[0] > sizes[1]


def test_slices_are_tenths_with_their_medians(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    counts = data.rarest_counts("test")
    slices = training_count_deciles(data)
    assert len(slices) == 10
    for part in slices:
        assert part.middle == np.median(counts[part.rows])
        assert part.rows.sum() >= len(counts) // 20
