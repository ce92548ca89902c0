"""A study as rows of text, the same in terminal, page and documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlet.reporting.text import as_markdown, human_bytes
from mlet.studies.reductions import largest_reduction, mean_reduction, points_of, reduction
from mlet.studies.results import OUTCOMES, ArmResult, Measure, Panel, Rows, StudyResult
from mlet.studies.study import SLT

ARM_COLUMNS = (
    "method", "d", "lr", "test AUC", "gain over SLT", "over rows", "logloss gain", "rare AUC",
    "reduction", "size", "training size", "time",
)  # fmt: skip

#: Where there is one panel of SLT and MLET alone.
COMPARE_COLUMNS = (
    "method", "d", "k", "lr", "test AUC", "gain over SLT", "test logloss", "rare AUC",
    "rare logloss", "reduction", "size", "time",
)  # fmt: skip

REDUCTION_COLUMNS = (
    "data", "optimizer", "model", "method", "mean AUC gain", "better", "worse", "unclear",
    "mean reduction", "largest",
)  # fmt: skip

TUNING_COLUMNS = ("arms", "trials of each", "failed", "best step size at an end", "final runs")


def arm_rows(panel: Panel, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """One row of the columns for each arm, by dimension; ± are 95 % t-intervals over seeds."""
    rows = [_cells(panel, arm) for arm in sorted(panel.arms, key=lambda arm: arm.dim)]
    if "k" not in columns:
        rows = [{**row, "method": row["name"]} for row in rows]
    return [tuple(row[column] for column in columns) for row in rows]


def _cells(panel: Panel, arm: ArmResult) -> dict[str, str]:
    """What is known of an arm, as text; gains and reductions only where there is SLT beside it."""
    slt = panel.slt(arm.dim)
    compared = slt is not None and slt is not arm
    over_rows = panel.row_interval(arm) if compared else None
    return {
        "name": "SLT" if arm.method == SLT else arm.method.name,
        "method": arm.method.name if arm.method.kind == "peer" else arm.method.kind.upper(),
        "d": str(arm.dim),
        "k": "" if arm.inner_dim is None else str(arm.inner_dim),
        "lr": f"{arm.learning_rate:.3g}" + ("!" if arm.tuning.at_edge else ""),
        "test AUC": _measured(arm, "test", "auc"),
        "gain over SLT": panel.gain(arm).signed() if compared else "",
        "over rows": f"{over_rows.low:+.4f} to {over_rows.high:+.4f}" if over_rows else "",
        "logloss gain": panel.gain(arm, measure="logloss").signed() if compared else "",
        "test logloss": _measured(arm, "test", "logloss"),
        "rare AUC": _measured(arm, "rare", "auc"),
        "rare logloss": _measured(arm, "rare", "logloss"),
        "reduction": str(reduction(panel, arm) or "–") if compared else "",
        "size": human_bytes(arm.model_bytes),
        "training size": human_bytes(arm.training_bytes),
        "time": f"{arm.seconds:.1f} s",
    }


def _measured(arm: ArmResult, rows: Rows, measure: Measure) -> str:
    found = arm.estimate(rows, measure)
    return "–" if math.isnan(found.mean) else str(found)


def reduction_rows(result: StudyResult) -> list[tuple[str, ...]]:
    """One row of `REDUCTION_COLUMNS` for each model and method, and one for all models."""
    rows = []
    for (dataset, optimizer), panels in by_setting(result).items():
        for method in (m for m in result.study.methods() if m != SLT):
            every = []
            for panel in panels:
                arms = [(panel, arm) for arm in panel.curve(method) if panel.slt(arm.dim)]
                if arms:
                    rows.append((dataset, optimizer, panel.model, method.name, *_summary(arms)))
                every += arms
            if len(panels) > 1 and every:
                rows.append((dataset, optimizer, "all", method.name, *_summary(every)))
    return rows


def _summary(arms: Sequence[tuple[Panel, ArmResult]]) -> tuple[str, ...]:
    """The numbers of `REDUCTION_COLUMNS`."""
    gains = [panel.gain(arm).mean for panel, arm in arms]
    outcomes = [panel.outcome(arm) for panel, arm in arms]
    return (
        f"{sum(gains) / len(gains):+.4f}",
        *(str(outcomes.count(kind)) for kind in OUTCOMES),
        mean_reduction(arms),
        largest_reduction(points_of(arms)),
    )


def tuning_row(result: StudyResult) -> tuple[str, ...]:
    """`TUNING_COLUMNS` of the whole study: that no arm was tuned less than another."""
    arms = [arm for panel in result.panels for arm in panel.arms]
    tried = sorted({arm.tuning.tried for arm in arms})
    return (
        str(len(arms)),
        " or ".join(map(str, tried)),
        str(sum(len(arm.tuning.failed) for arm in arms)),
        str(sum(arm.tuning.at_edge for arm in arms)),
        str(sum(len(arm.runs) for arm in arms)),
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
        parts += [f"## {panel.title}\n", as_markdown(ARM_COLUMNS, arm_rows(panel, ARM_COLUMNS))]
    return "\n".join(parts)
