"""A study as rows of text, the same in terminal, page and documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlet.reporting.text import as_markdown, human_bytes
from mlet.studies.methods import SLT
from mlet.studies.reductions import largest_reduction, mean_reduction, points_of, reduction
from mlet.studies.results import OUTCOMES, ArmResult, Panel, Rows, StudyResult
from mlet.studies.scores import GAUC
from mlet.studies.verdict import data_sentences
from mlet.task import Metric, Task

TUNING_COLUMNS = (
    "arms",
    "trials of each",
    "given up early",
    "failed",
    "best step size at an end",
    "final runs",
)


def is_grouped(result: StudyResult) -> bool:
    """Whether rows of some data set have groups, and tables columns for GAUC."""
    return any(schema.group is not None for schema in result.schemas.values())


def _gauc(grouped: bool) -> tuple[str, ...]:
    return (f"test {GAUC.label}", f"{GAUC.label} gain") if grouped else ()


def arm_columns(task: Task, *, grouped: bool = False) -> tuple[str, ...]:
    """Of the table of one panel of a study."""
    headline, *others = (measure.label for measure in task.measures)
    return (
        "method", "d", "lr", f"test {headline}", "gain over SLT", "over rows",
        *(f"{other} gain" for other in others), f"rare {headline}", *_gauc(grouped),
        "reduction", "size", "training size", "time",
    )  # fmt: skip


def compare_columns(task: Task, *, grouped: bool = False) -> tuple[str, ...]:
    """Where there is one panel of SLT and MLET alone."""
    headline, *others = (measure.label for measure in task.measures)
    return (
        "method", "d", "k", "lr", f"test {headline}", "gain over SLT",
        *(f"test {other}" for other in others), f"rare {headline}",
        *(f"rare {other}" for other in others), *_gauc(grouped), "reduction", "size", "time",
    )  # fmt: skip


def reduction_columns(task: Task) -> tuple[str, ...]:
    """Of the summary of a study."""
    return (
        "data", "optimizer", "model", "method", f"mean {task.headline.label} gain", "better",
        "worse", "unclear", "mean reduction", "largest",
    )  # fmt: skip


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
    measured = dict.fromkeys(_gauc(True), "–")
    for measure in panel.measures:
        gain = panel.gain(arm, measure=measure).signed() if compared else ""
        measured |= {
            f"test {measure.label}": _measured(arm, "test", measure),
            f"rare {measure.label}": _measured(arm, "rare", measure),
            f"{measure.label} gain": gain,
        }
    return {
        **measured,
        "name": "SLT" if arm.method == SLT else arm.method.name,
        "method": arm.method.name if arm.method.kind == "peer" else arm.method.kind.upper(),
        "d": str(arm.dim),
        "k": "" if arm.inner_dim is None else str(arm.inner_dim),
        "lr": f"{arm.learning_rate:.3g}" + ("!" if arm.tuning.at_edge else ""),
        "gain over SLT": panel.gain(arm).signed() if compared else "",
        "over rows": f"{over_rows.low:+.4f} to {over_rows.high:+.4f}" if over_rows else "",
        "reduction": str(reduction(panel, arm) or "–") if compared else "",
        "size": human_bytes(arm.model_bytes),
        "training size": human_bytes(arm.training_bytes),
        "time": f"{arm.seconds:.1f} s",
    }


def _measured(arm: ArmResult, rows: Rows, measure: Metric) -> str:
    found = arm.estimate(rows, measure)
    return "–" if math.isnan(found.mean) else str(found)


def reduction_rows(result: StudyResult) -> list[tuple[str, ...]]:
    """One row of `reduction_columns` for each model and method, and one for all models."""
    rows = []
    for (dataset, optimizer), panels in by_setting(result).items():
        for method in (m for m in result.study.methods() if m != SLT):
            every = []
            for panel in panels:
                arms = [
                    (panel, arm)
                    for arm in (panel.two_layer if method.kind == "mlet" else panel.peers)
                    if arm.method == method and panel.slt(arm.dim)
                ]
                if arms:
                    rows.append((dataset, optimizer, panel.model, method.name, *_summary(arms)))
                every += arms
            if len(panels) > 1 and every:
                rows.append((dataset, optimizer, "all", method.name, *_summary(every)))
    return rows


def _summary(arms: Sequence[tuple[Panel, ArmResult]]) -> tuple[str, ...]:
    """The numbers of `reduction_columns`."""
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
        str(sum(arm.tuning.given_up for arm in arms)),
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
    parts = [
        "## Reductions\n",
        as_markdown(reduction_columns(result.study.task), reduction_rows(result)),
    ]
    parts += ["## Tuning\n", as_markdown(TUNING_COLUMNS, [tuning_row(result)])]
    if result.biases:
        sentences = "\n".join(f"- {sentence}" for sentence in data_sentences(result))
        parts += ["## The data\n", f"{sentences}\n"]
    columns = arm_columns(result.study.task, grouped=is_grouped(result))
    for panel in result.panels:
        parts += [f"## {panel.title}\n", as_markdown(columns, arm_rows(panel, columns))]
    return "\n".join(parts)
