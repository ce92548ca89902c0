"""Reductions with intervals, and verdicts, from made-up scores."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mlet.data import PreparedDataset
from mlet.experiments.iso_quality import IsoQuality
from mlet.experiments.results import ArmResult, Comparison, RunScores
from mlet.metrics import Scores
from mlet.sweep import StudyConfig, StudyResult
from mlet.sweep.figures import gain_maps
from mlet.sweep.reductions import largest_reduction, mean_reduction, reduction
from mlet.sweep.results import Panel, StudyArm, Tuning
from mlet.sweep.slices import training_count_deciles
from mlet.sweep.study import Arm, Method
from mlet.sweep.table import ARM_COLUMNS, REDUCTION_COLUMNS, arm_rows, reduction_rows
from mlet.sweep.verdict import counts, expected_by_chance, help_paragraphs

SAMPLES = 200


def made_up(
    data: Path, auc: dict[tuple[str, int], list[float]], spread: float
) -> tuple[StudyConfig, Panel]:
    """A panel with these AUCs by (method, d), rows moving all arms up and down together."""
    config = StudyConfig.parse(
        {
            "datasets": {"clicks": {"prepared": str(data)}},
            "models": ["dlrm"],
            "optimizers": ["adagrad"],
            "dims": sorted({dim for _, dim in auc}),
            "inner_dims": [16],
            "seeds": 2,
        },
        "study",
    )
    generator = np.random.default_rng(0)
    together = generator.normal(0, spread, SAMPLES)
    arms = []
    for (method, dim), values in auc.items():
        inner = 16 if method == "mlet-k16" else None
        changes = {} if inner is None else {"inner_dim": inner}
        scores = tuple(
            RunScores(seed, Scores(v, 0.5, 1.0), Scores(v, 0.5, 1.0), v, 10, 2.0)
            for seed, v in enumerate(values)
        )
        resamples = np.stack([np.stack([v + together, 1 - v - together], 1) for v in values])
        arms.append(
            StudyArm(
                Arm("clicks", "dlrm", "adagrad", dim, Method(method, changes)),
                Tuning({"learning_rate": 0.02}, 6, 0, False),
                ArmResult(dim, inner, 0.02, scores, 100 * dim),
                1_000,
                resamples,
                np.zeros((2, 3, 2)),
                (),
            )
        )
    dataset = PreparedDataset(data)
    comparison = Comparison(
        dataset.schema,
        config.run(arms[0].arm, arms[0].tuning.setting, 0, data),
        tuple(arm.result for arm in arms),
        (), (), 10, 5, 1, 1.0, "a machine",
    )  # fmt: skip
    slices = tuple(training_count_deciles(dataset))
    return config, Panel("clicks", "dlrm", "adagrad", comparison, tuple(arms), slices, data)


def test_the_interval_of_a_reduction_needs_no_extrapolation(small_data: Path) -> None:
    auc = {
        ("slt", 2): [0.70, 0.70], ("slt", 4): [0.72, 0.72], ("slt", 8): [0.74, 0.74],
        ("mlet-k16", 2): [0.73, 0.73], ("mlet-k16", 4): [0.69, 0.69],
        ("mlet-k16", 8): [0.735, 0.75],
    }  # fmt: skip
    _, panel = made_up(small_data, auc, spread=0.01)
    two, four, eight = panel.curve("mlet-k16")
    found = reduction(panel, two)
    # d = 2 reaches half way, in log d, between 4 and 8, whatever the rows do to all arms together
    for end in (found.point, found.low, found.high):
        assert end.kind == "exact"
        assert end.reduction == pytest.approx(2 * 2**0.5)
    worse = reduction(panel, four)
    assert (str(worse.point), str(worse.low), str(worse.high)) == ("< 0.5×",) * 3
    # one seed reaches less than SLT's 0.74, one more: both ends are in the interval
    unsure = reduction(panel, eight)
    assert unsure.low.kind == "exact"
    assert unsure.low.reduction < 1
    assert unsure.high == IsoQuality(1.0, "above")
    assert str(unsure).endswith("to > 1×)")


def test_the_row_interval_is_of_the_paired_difference(small_data: Path) -> None:
    auc = {("slt", 2): [0.70, 0.72], ("mlet-k16", 2): [0.73, 0.71]}
    _, panel = made_up(small_data, auc, spread=0.05)
    interval = panel.row_interval(panel.mlet[0])
    assert interval == pytest.approx((0.01, 0.01))
    assert panel.row_interval(panel.mlet[0], 1) == pytest.approx((-0.01, -0.01))


@pytest.mark.parametrize(
    ("mlet", "mean", "largest"),
    [
        ({2: 0.72, 4: 0.72}, "1.4× (1.4 to 1.4)", "2×"),
        ({2: 0.72, 8: 0.80}, "≥ 1.4× (1.4 to 1.4)", "2×"),
        ({2: 0.72, 4: 0.60}, "≤ 1× (1 to 1)", "2×"),
        ({4: 0.60, 8: 0.80}, "~ 0.71× (0.71 to 0.71)", "> 1×"),
    ],
)
def test_means_say_which_bounds_are_in_them(
    small_data: Path, mlet: dict[int, float], mean: str, largest: str
) -> None:
    auc = {("slt", 2): [0.70, 0.70], ("slt", 4): [0.72, 0.72], ("slt", 8): [0.74, 0.74]}
    auc |= {("mlet-k16", dim): [value, value] for dim, value in mlet.items()}
    _, panel = made_up(small_data, auc, spread=0.01)
    assert mean_reduction([(panel, arm) for arm in panel.mlet]) == mean
    assert largest_reduction([reduction(panel, arm).point for arm in panel.mlet]) == largest
    assert mean_reduction([]) == largest_reduction([]) == "–"


def test_the_interval_of_a_mean_is_over_seeds_too(small_data: Path) -> None:
    auc = {("slt", 2): [0.70, 0.70], ("slt", 4): [0.72, 0.72], ("mlet-k16", 2): [0.70, 0.72]}
    _, panel = made_up(small_data, auc, spread=0.01)
    assert mean_reduction([(panel, panel.mlet[0])]) == "1.4× (1 to 2)"


def test_the_verdict_names_both_sides(small_data: Path) -> None:
    auc = {
        ("slt", 2): [0.70, 0.71], ("slt", 4): [0.72, 0.73], ("slt", 8): [0.74, 0.75],
        ("mlet-k16", 2): [0.72, 0.73], ("mlet-k16", 4): [0.70, 0.71], ("mlet-k16", 8): [0.74, 0.77],
    }  # fmt: skip
    config, panel = made_up(small_data, auc, spread=0.01)
    schemas = {"clicks": panel.comparison.schema}
    result = StudyResult(config, (panel,), (), schemas, 1.0, 1, "a machine")
    helped, not_helped = help_paragraphs(result)
    assert helped == ["clicks · dlrm · adagrad: d=2 k=16 (+0.0200)."]
    assert not_helped == [
        "clicks · dlrm · adagrad: worse than SLT at d=4 k=16 (-0.0200).",
        "clicks · dlrm · adagrad: 1 of 3 arms cannot be told apart from SLT with these seeds "
        "(+0.0100 to +0.0100 AUC).",
    ]
    picture = gain_maps([panel])
    assert picture.count("stroke-width: 1.5") == 2, "what the seeds tell apart is outlined"
    assert picture.index("QuadMesh") < picture.index("stroke-width: 1.5"), "over the cells"
    assert counts(result) == {"better": 1, "worse": 1, "unclear": 1}
    assert expected_by_chance(result) == 3 / 40
    (row,) = reduction_rows(result)
    assert dict(zip(REDUCTION_COLUMNS, row, strict=True)) == {
        "data": "clicks", "optimizer": "adagrad", "model": "dlrm", "method": "mlet-k16",
        "mean AUC gain": "+0.0033", "better": "1", "worse": "1", "unclear": "1",
        "mean reduction": "≥ 1× (1 to 1)", "largest": "2×",
    }  # fmt: skip
    rows = [dict(zip(ARM_COLUMNS, cells, strict=True)) for cells in arm_rows(panel)]
    assert [(row["method"], row["d"]) for row in rows[:2]] == [("SLT", "2"), ("mlet-k16", "2")]
    assert rows[0]["reduction"] == rows[0]["gain over SLT"] == ""
    assert rows[1]["gain over SLT"].startswith("+0.0200")
    assert rows[1]["reduction"].startswith("2×")


def test_deciles_hold_every_test_row_once(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    slices = training_count_deciles(data)
    counts_ = data.rarest_counts("test")
    assert np.sum([part.rows for part in slices], axis=0).tolist() == [1] * len(counts_)
    assert 3 <= len(slices) <= 10
    for before, after in pairwise(slices):
        assert counts_[before.rows].max() < counts_[after.rows].min()
        assert before.middle < after.middle
