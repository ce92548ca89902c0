"""A study as rows of text, the same in terminal, page and documentation."""

from __future__ import annotations

from collections.abc import Sequence

from mlet.experiments.results import OUTCOMES
from mlet.experiments.table import as_markdown, human_bytes
from mlet.sweep.reductions import largest_reduction, mean_reduction, reduction
from mlet.sweep.results import Panel, StudyArm, StudyResult

ARM_COLUMNS = (
    "method", "d", "lr", "test AUC", "gain over SLT", "over rows", "logloss gain", "rare AUC",
    "reduction", "size", "training size", "time",
)  # fmt: skip

REDUCTION_COLUMNS = (
    "data", "optimizer", "model", "method", "mean AUC gain", "better", "worse", "unclear",
    "mean reduction", "largest",
)  # fmt: skip

TUNING_COLUMNS = ("arms", "trials of each", "failed", "best step size at an end", "final runs")


def arm_rows(panel: Panel) -> list[tuple[str, ...]]:
    """One row of `ARM_COLUMNS` for each arm, by dimension; ± are 95 % t-intervals over seeds."""
    return [_arm_row(panel, arm) for arm in sorted(panel.arms, key=lambda arm: arm.arm.dim)]


def _arm_row(panel: Panel, arm: StudyArm) -> tuple[str, ...]:
    result, slt = arm.result, panel.slt(arm.arm.dim)
    compared = slt is not None and slt is not arm
    rows = panel.row_interval(arm) if compared else None
    auc, rare = result.estimate("test", "auc"), result.estimate("rare", "auc")
    return (
        "SLT" if arm is slt else arm.arm.method.name,
        str(arm.arm.dim),
        f"{result.learning_rate:.3g}" + ("!" if arm.tuning.at_edge else ""),
        str(auc),
        panel.comparison.gain(result).signed() if compared else "",
        f"{rows.low:+.4f} to {rows.high:+.4f}" if rows else "",
        panel.comparison.gain(result, measure="logloss").signed() if compared else "",
        "–" if rare.mean != rare.mean else str(rare),
        str(reduction(panel, arm)) if compared else "",
        human_bytes(result.model_bytes),
        human_bytes(arm.training_bytes),
        f"{result.seconds:.1f} s",
    )


def reduction_rows(result: StudyResult) -> list[tuple[str, ...]]:
    """One row of `REDUCTION_COLUMNS` for each model and method, and one for all models."""
    rows = []
    for (dataset, optimizer), panels in by_setting(result).items():
        for method in (m for m in result.study.methods() if m.name != "slt"):
            every = []
            for panel in panels:
                arms = [(panel, arm) for arm in panel.curve(method.name) if panel.slt(arm.arm.dim)]
                if arms:
                    rows.append((dataset, optimizer, panel.model, method.name, *_summary(arms)))
                every += arms
            if len(panels) > 1 and every:
                rows.append((dataset, optimizer, "all", method.name, *_summary(every)))
    return rows


def _summary(arms: Sequence[tuple[Panel, StudyArm]]) -> tuple[str, ...]:
    """The numbers of `REDUCTION_COLUMNS`."""
    gains = [panel.comparison.gain(arm.result).mean for panel, arm in arms]
    outcomes = [panel.comparison.outcome(arm.result) for panel, arm in arms]
    return (
        f"{sum(gains) / len(gains):+.4f}",
        *(str(outcomes.count(kind)) for kind in OUTCOMES),
        mean_reduction(arms),
        largest_reduction([reduction(panel, arm).point for panel, arm in arms]),
    )


def tuning_row(result: StudyResult) -> tuple[str, ...]:
    """`TUNING_COLUMNS` of the whole study: that no arm was tuned less than another."""
    arms = [arm for panel in result.panels for arm in panel.arms]
    tried = sorted({arm.tuning.tried for arm in arms})
    return (
        str(len(arms)),
        " or ".join(map(str, tried)),
        str(sum(arm.tuning.failed for arm in arms)),
        str(sum(arm.tuning.at_edge for arm in arms)),
        str(sum(len(arm.result.runs) for arm in arms)),
    )


def by_setting(result: StudyResult) -> dict[tuple[str, str], list[Panel]]:
    """Panels by data set and optimizer: the models that stand side by side."""
    settings = dict.fromkeys((panel.dataset, panel.optimizer) for panel in result.panels)
    return {
        (dataset, optimizer): [
            panel
            for panel in result.panels
            if (panel.dataset, panel.optimizer) == (dataset, optimizer)
        ]
        for dataset, optimizer in settings
    }


def markdown(result: StudyResult) -> str:
    """All tables of a study in Markdown."""
    parts = ["## Reductions\n", as_markdown(REDUCTION_COLUMNS, reduction_rows(result))]
    parts += ["## Tuning\n", as_markdown(TUNING_COLUMNS, [tuning_row(result)])]
    for panel in result.panels:
        parts += [f"## {panel.title}\n", as_markdown(ARM_COLUMNS, arm_rows(panel))]
    return "\n".join(parts)
