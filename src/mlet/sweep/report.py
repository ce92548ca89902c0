"""The report of a study: numbers as JSON and Markdown, and one self-contained HTML page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mlet.atomic import write_text
from mlet.experiments.results import without_nan
from mlet.pages import render
from mlet.plotting import embedded
from mlet.sweep.figures import category_losses, curves, gain_maps, gains_by_count, pareto
from mlet.sweep.reductions import reduction
from mlet.sweep.results import Panel, StudyArm, StudyResult
from mlet.sweep.table import (
    ARM_COLUMNS,
    REDUCTION_COLUMNS,
    TUNING_COLUMNS,
    arm_rows,
    by_setting,
    markdown,
    reduction_rows,
    tuning_row,
)
from mlet.sweep.verdict import counts, expected_by_chance, help_paragraphs


def write_study_report(result: StudyResult, out: Path) -> Path:
    """Write ``report.html``, ``study.json``, ``tables.md`` and the figures; returns the page."""
    sections = []
    for (dataset, optimizer), panels in by_setting(result).items():
        figures = _figures(panels)
        for name, svg in figures.items():
            write_text(out / "figures" / f"{dataset}-{optimizer}-{name}.svg", svg + "\n")
        sections.append(
            {
                "title": f"{dataset} · {optimizer}",
                "schema": result.schemas[dataset],
                "figures": {name: Markup(embedded(svg)) for name, svg in figures.items()},
                "tables": [(panel.model, arm_rows(panel)) for panel in panels],
            }
        )
    helped, not_helped = help_paragraphs(result)
    page = render(
        "study.html.j2",
        result=result,
        sections=sections,
        reduction_columns=REDUCTION_COLUMNS,
        reductions=reduction_rows(result),
        arm_columns=ARM_COLUMNS,
        tuning=list(zip(TUNING_COLUMNS, tuning_row(result), strict=True)),
        counts=counts(result),
        chance=expected_by_chance(result),
        helped=helped,
        not_helped=not_helped,
        study_yaml=result.study.to_yaml(),
    )
    path = out / "report.html"
    write_text(path, page)
    write_text(out / "tables.md", markdown(result))
    write_text(out / "study.json", json.dumps(without_nan(to_dict(result)), indent=1) + "\n")
    return path


def _figures(panels: list[Panel]) -> dict[str, str]:
    figures = {"curves": curves(panels)}
    if any(panel.mlet for panel in panels):
        dims = [arm.arm.dim for arm in panels[0].curve("slt")]
        figures["gains"] = gain_maps(panels)
        figures["by-count"] = gains_by_count(panels)
        if panels[0].comparison.schema.one_valued:
            figures["categories"] = category_losses(panels, dims[len(dims) // 2])
    for panel in panels:
        if panel.peers:
            figures[f"pareto-{panel.model}"] = pareto(panel)
    return figures


def to_dict(result: StudyResult) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "study": result.study.model_dump(mode="json"),
        "machine": result.machine,
        "jobs": result.jobs,
        "seconds": result.seconds,
        "failures": [
            {"arm": failure.arm.name, "reasons": failure.reasons} for failure in result.failures
        ],
        "panels": [
            {
                "dataset": panel.dataset,
                "model": panel.model,
                "optimizer": panel.optimizer,
                "slices": [
                    {"name": part.name, "count": part.middle, "rows": int(part.rows.sum())}
                    for part in panel.slices
                ],
                "arms": [_arm_dict(panel, arm) for arm in panel.arms],
            }
            for panel in result.panels
        ],
    }


def _arm_dict(panel: Panel, arm: StudyArm) -> dict[str, Any]:
    values: dict[str, Any] = {
        "method": arm.arm.method.name,
        "dim": arm.arm.dim,
        "inner_dim": arm.result.inner_dim,
        "tuning": asdict(arm.tuning),
        "model_bytes": arm.result.model_bytes,
        "training_bytes": arm.training_bytes,
        "train_seconds": arm.result.seconds,
        "runs": [
            {**asdict(run), "test": run.test._asdict(), "rare": run.rare._asdict()}
            for run in arm.result.runs
        ],
        "slices": arm.slices.mean(axis=0).tolist(),
    }
    for rows in ("test", "rare"):
        values[rows] = {m: asdict(arm.result.estimate(rows, m)) for m in ("auc", "logloss")}
    if arm.arm.method.name != "slt" and panel.slt(arm.arm.dim) is not None:
        values["gain"] = {
            "auc": asdict(panel.comparison.gain(arm.result)),
            "auc_over_rows": panel.row_interval(arm),
            "logloss": asdict(panel.comparison.gain(arm.result, measure="logloss")),
            "logloss_over_rows": panel.row_interval(arm, 1),
        }
        values["reduction"] = asdict(reduction(panel, arm))
    return values
