"""Reductions with intervals, and verdicts, from made-up scores."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_up import made_up, mlet

from mlet.data import PreparedDataset
from mlet.data.frequency import training_count_deciles
from mlet.studies import StudyResult
from mlet.studies.arm_table import arm_columns, arm_rows, reduction_columns, reduction_rows
from mlet.studies.figures import gain_maps, in_noise
from mlet.studies.iso_quality import IsoQuality
from mlet.studies.methods import SLT, Method
from mlet.studies.reductions import largest_reduction, mean_reduction, points_of, reduction
from mlet.studies.statistics import Estimate
from mlet.studies.verdict import (
    counts,
    expected_by_chance,
    finding,
    help_paragraphs,
    panel_verdict,
)
from mlet.task import Binary


def test_the_interval_of_a_reduction_needs_no_extrapolation(small_data: Path) -> None:
    auc = {
        (SLT, 2): [0.70] * 3, (SLT, 4): [0.72] * 3, (SLT, 8): [0.74] * 3,
        (mlet(16), 2): [0.73] * 3, (mlet(16), 4): [0.69] * 3,
        (mlet(16), 8): [0.735, 0.735, 0.75],
    }  # fmt: skip
    _, panel = made_up(small_data, auc, spread=0.01)
    two, four, eight = panel.curve(mlet(16))
    found = reduction(panel, two)
    # d = 2 reaches half way, in log d, between 4 and 8, whatever the rows do to all arms together
    for end in (found.point, *found.interval):
        assert end.kind == "exact"
        assert end.reduction == pytest.approx(2 * 2**0.5)
    worse = reduction(panel, four)
    assert str(worse) == "< 0.5× (< 0.5× to < 0.5×)"
    # two seeds reach less than SLT's 0.74, one more: both ends are in the interval
    unsure = reduction(panel, eight)
    low, high = unsure.interval
    assert low.kind == "exact"
    assert low.reduction < 1
    assert high == IsoQuality(1.0, "above")
    assert str(unsure).endswith("to > 1×)")


def test_two_seeds_give_no_interval(small_data: Path) -> None:
    """A quarter of their resamples are one seed twice: the ends would be the two seeds."""
    auc = {(SLT, 2): [0.70, 0.70], (SLT, 4): [0.72, 0.72], (mlet(16), 2): [0.705, 0.715]}
    _, panel = made_up(small_data, auc, spread=0.01)
    found = reduction(panel, panel.mlet[0])
    assert found.interval is None
    assert str(found) == "1.41×"
    assert mean_reduction([(panel, panel.mlet[0])]) == "1.4×"


def test_the_row_interval_is_of_the_paired_difference(small_data: Path) -> None:
    auc = {(SLT, 2): [0.70, 0.72], (mlet(16), 2): [0.73, 0.71]}
    _, panel = made_up(small_data, auc, spread=0.05)
    interval = panel.row_interval(panel.mlet[0])
    assert interval == pytest.approx((0.01, 0.01))
    assert panel.row_interval(panel.mlet[0], Binary.row_loss) == pytest.approx((-0.01, -0.01))


@pytest.mark.parametrize(
    ("reached", "mean", "largest"),
    [
        ({2: 0.72, 4: 0.72}, "1.4× (1.4 to 1.4)", "2×"),
        ({2: 0.72, 8: 0.80}, "≥ 1.4× (1.4 to 1.4)", "2×"),
        ({2: 0.72, 4: 0.60}, "≤ 1× (1 to 1)", "2×"),
        ({2: 0.72, 4: 0.60, 8: 0.80}, "~ 1× (1 to 1)", "2×"),
        ({4: 0.60, 8: 0.80}, "bounds only", "> 1×"),
    ],
)
def test_means_say_which_bounds_are_in_them(
    small_data: Path, reached: dict[int, float], mean: str, largest: str
) -> None:
    auc = {(SLT, 2): [0.70] * 3, (SLT, 4): [0.72] * 3, (SLT, 8): [0.74] * 3}
    auc |= {(mlet(16), dim): [value] * 3 for dim, value in reached.items()}
    _, panel = made_up(small_data, auc, spread=0.01)
    assert mean_reduction([(panel, arm) for arm in panel.mlet]) == mean
    assert largest_reduction(points_of([(panel, arm) for arm in panel.mlet])) == largest
    assert mean_reduction([]) == largest_reduction([]) == "–"


def test_the_interval_of_a_mean_is_over_seeds_too(small_data: Path) -> None:
    auc = {(SLT, 2): [0.70] * 3, (SLT, 4): [0.72] * 3, (mlet(16), 2): [0.70, 0.71, 0.72]}
    _, panel = made_up(small_data, auc, spread=0.01)
    assert mean_reduction([(panel, panel.mlet[0])]) == "1.4× (1 to 2)"


@pytest.mark.parametrize(
    ("gains", "gist"),
    [
        ((0.02, 0.01), "two layers help on this data; k = 16 is worth a table"),
        ((-0.02, -0.01), "two layers cost quality on this data; k = 16 is worth a table ≤ 0."),
        ((-0.02, -0.03), "what width k = 16 is worth cannot be read off, as no single layer"),
        ((0.02, -0.03), "help at some dimensions and cost quality at others"),
        ((0.0, 0.0), "make no difference that these seeds can tell"),
    ],
)
def test_a_comparison_in_one_sentence(
    small_data: Path, gains: tuple[float, float], gist: str
) -> None:
    slt = {(SLT, 2): [0.70, 0.71], (SLT, 4): [0.72, 0.73]}
    other = {
        (mlet(16), dim): [value + gain for value in slt[SLT, dim]]
        for dim, gain in zip((2, 4), gains, strict=True)
    }
    _, panel = made_up(small_data, {**slt, **other}, spread=0.01)
    sentence = finding(panel)
    assert sentence is not None
    assert sentence.startswith("In one sentence: ")
    assert gist in sentence
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    assert f"with {better} of 2 dimensions better than a single layer and {worse} worse" in sentence
    mean = mean_reduction([(panel, arm) for arm in panel.mlet])
    assert mean == "bounds only" or mean in sentence


def test_without_mlet_arms_there_is_nothing_to_say(small_data: Path) -> None:
    _, panel = made_up(small_data, {(SLT, 2): [0.70, 0.71]}, spread=0.01)
    assert finding(panel) is None


def test_the_verdict_names_both_sides(small_data: Path) -> None:
    auc = {
        (SLT, 2): [0.70, 0.71], (SLT, 4): [0.72, 0.73], (SLT, 8): [0.74, 0.75],
        (mlet(16), 2): [0.72, 0.73], (mlet(16), 4): [0.70, 0.71], (mlet(16), 8): [0.74, 0.77],
    }  # fmt: skip
    config, panel = made_up(small_data, auc, spread=0.01)
    schemas = {"clicks": panel.schema}
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
    assert dict(zip(reduction_columns(config.task), row, strict=True)) == {
        "data": "clicks", "optimizer": "adagrad", "model": "dlrm", "method": "mlet-k16",
        "mean AUC gain": "+0.0033", "better": "1", "worse": "1", "unclear": "1",
        "mean reduction": "≥ 1×", "largest": "2×",
    }  # fmt: skip
    columns = arm_columns(config.task)
    rows = [dict(zip(columns, cells, strict=True)) for cells in arm_rows(panel, columns)]
    assert [(row["method"], row["d"]) for row in rows[:2]] == [("SLT", "2"), ("mlet-k16", "2")]
    assert rows[0]["reduction"] == rows[0]["gain over SLT"] == ""
    assert rows[1]["gain over SLT"].startswith("+0.0200")
    assert rows[1]["reduction"].startswith("2×")


@pytest.mark.parametrize(
    ("mean", "margin", "colour"),
    [(0.01, 0.02, 0.5), (-0.03, 0.02, -1.5), (0.5, 0.01, 3), (-0.1, 0.0, -3), (0.1, None, 0)],
)
def test_the_heat_map_is_coloured_by_noise(mean: float, margin: float | None, colour: int) -> None:
    assert in_noise(Estimate(mean, margin)) == pytest.approx(colour)


def test_deciles_hold_every_test_row_once(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    slices = training_count_deciles(data)
    counts_ = data.rarest_counts("test")
    assert np.sum([part.rows for part in slices], axis=0).tolist() == [1] * len(counts_)
    assert 3 <= len(slices) <= 10
    for part in slices:
        assert part.middle == np.median(counts_[part.rows])
    # Ten parts where no count is that of more than a tenth of the rows.
    assert len(slices) > 5 or np.unique(counts_, return_counts=True)[1].max() > len(counts_) / 10
    for before, after in pairwise(slices):
        assert counts_[before.rows].max() < counts_[after.rows].min()
        assert before.middle < after.middle


AUTO = Method("mlet-auto", "mlet", {"inner_dim": "auto"})


def test_an_arm_that_auto_leaves_ordinary_is_no_finding(small_data: Path) -> None:
    """Its numbers are SLT's own: it is worth one table of its width, whatever the curve does."""
    falling = {(SLT, 2): [0.72] * 3, (SLT, 16): [0.71] * 3, (SLT, 32): [0.70, 0.71, 0.72]}
    auto = {(AUTO, 16): [0.75] * 3, (AUTO, 32): [0.70, 0.71, 0.72]}
    _, panel = made_up(small_data, {**falling, **auto}, 1e-4)
    arms = tuple(
        replace(arm, inner_dim={16: 64, 32: None}[arm.dim]) if arm.method == AUTO else arm
        for arm in panel.arms
    )
    panel = replace(panel, arms=arms)
    ordinary = next(arm for arm in panel.mlet if arm.inner_dim is None)
    assert str(reduction(panel, ordinary)) == "1× (1× to 1×)"
    assert [arm.dim for arm in panel.two_layer] == [16]
    sentence = finding(panel)
    assert sentence is not None
    assert "1 of 1 dimensions better" in sentence
    assert "At d = 32 inner_dim: auto trains ordinary tables, as SLT does." in panel_verdict(panel)
    only = replace(panel, arms=tuple(arm for arm in arms if arm.inner_dim is None))
    said = finding(only)
    assert said is not None
    assert "there was nothing to compare, since inner_dim: auto leaves all tables ordinary" in said
