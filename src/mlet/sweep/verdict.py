"""What a study says, in sentences."""

from __future__ import annotations

from mlet.experiments.results import OUTCOMES, Outcome
from mlet.sweep.results import Panel, StudyArm, StudyResult


def help_paragraphs(result: StudyResult) -> tuple[list[str], list[str]]:
    """Where MLET helped, and where it did not: sentences for each."""
    helped, not_helped = [], []
    for panel in result.panels:
        better, worse, unclear = (
            [arm for arm in panel.mlet if panel.comparison.outcome(arm.result) == kind]
            for kind in OUTCOMES
        )
        if better:
            helped.append(f"{panel.title}: {_list(panel, better)}.")
        if worse:
            not_helped.append(f"{panel.title}: worse than SLT at {_list(panel, worse)}.")
        if unclear:
            not_helped.append(
                f"{panel.title}: {len(unclear)} of {len(panel.mlet)} arms cannot be told apart "
                f"from SLT with these seeds ({_range(panel, unclear)})."
            )
    return helped, not_helped


def counts(result: StudyResult) -> dict[Outcome, int]:
    """How many MLET arms are better, worse and not told apart, over the whole study."""
    outcomes = [p.comparison.outcome(arm.result) for p in result.panels for arm in p.mlet]
    return {kind: outcomes.count(kind) for kind in OUTCOMES}


def expected_by_chance(result: StudyResult) -> float:
    """Arms that would be called better, and as many worse, if there were no difference at all.

    The intervals are 95 % ones: of many arms, one in forty lies outside on either side by chance.
    """
    return sum(len(panel.mlet) for panel in result.panels) / 40


def _list(panel: Panel, arms: list[StudyArm]) -> str:
    return ", ".join(
        f"d={arm.arm.dim} k={arm.result.inner_dim} ({panel.comparison.gain(arm.result).mean:+.4f})"
        for arm in arms
    )


def _range(panel: Panel, arms: list[StudyArm]) -> str:
    gains = [panel.comparison.gain(arm.result).mean for arm in arms]
    return f"{min(gains):+.4f} to {max(gains):+.4f} AUC"
