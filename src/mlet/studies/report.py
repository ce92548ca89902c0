"""The report of a study: numbers as JSON and Markdown, and one self-contained HTML page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlet.atomic import write_text
from mlet.reporting.page import render
from mlet.reporting.plots import on_page
from mlet.reporting.text import without_nan
from mlet.studies.arm_table import (
    TUNING_COLUMNS,
    arm_columns,
    arm_rows,
    by_setting,
    is_grouped,
    markdown,
    reduction_columns,
    reduction_rows,
    tuning_row,
)
from mlet.studies.figures import category_losses, curves, gain_maps, gains_by_count, pareto
from mlet.studies.methods import SLT
from mlet.studies.reductions import reduction
from mlet.studies.results import ROWS, ArmResult, Panel, Rows, StudyResult
from mlet.studies.used_settings import used_settings
from mlet.studies.verdict import counts, data_sentences, expected_by_chance, help_paragraphs


def write_report(result: StudyResult, out: Path) -> Path:
    """Write ``report.html``, ``study.json``, ``tables.md`` and the figures; returns the page."""
    sections = []
    columns = arm_columns(result.study.task, grouped=is_grouped(result))
    for (dataset, optimizer), panels in by_setting(result).items():
        figures = _figures(panels)
        for name, svg in figures.items():
            write_text(out / "figures" / f"{dataset}-{optimizer}-{name}.svg", svg + "\n")
        sections.append(
            {
                "title": f"{dataset} · {optimizer}",
                "schema": result.schemas[dataset],
                "figures": {
                    name: on_page(svg, f"{dataset}, {optimizer}: {_alt(name, result)}")
                    for name, svg in figures.items()
                },
                "tables": [(panel.model, arm_rows(panel, columns)) for panel in panels],
            }
        )
    helped, not_helped = help_paragraphs(result)
    page = render(
        "study.html.j2",
        result=result,
        sections=sections,
        mlet_methods=[m.name for m in result.study.methods() if m.kind == "mlet"],
        task=result.study.task,
        reduction_columns=reduction_columns(result.study.task),
        reductions=reduction_rows(result),
        arm_columns=columns,
        tuning=list(zip(TUNING_COLUMNS, tuning_row(result), strict=True)),
        counts=counts(result),
        chance=expected_by_chance(result),
        helped=helped,
        not_helped=not_helped,
        biases=data_sentences(result),
        settings=used_settings(result.study),
    )
    path = out / "report.html"
    write_text(path, page)
    write_text(out / "tables.md", markdown(result))
    write_text(out / "study.json", json.dumps(without_nan(to_dict(result)), indent=1) + "\n")
    return path


def _alt(figure: str, result: StudyResult) -> str:
    """What a figure shows, for who does not see it."""
    task = result.study.task
    return {
        "curves": f"test {task.headline.label} of every method against embedding dimension",
        "gains": f"gain of MLET in test {task.headline.label}, by d and k, as a heat map",
        "by-count": "gain of MLET against the training count of a row's rarest category",
        "categories": f"{task.row_loss.label} of single categories against their training count",
    }.get(figure, f"test {task.headline.label} against the bytes of the served model")


def _figures(panels: list[Panel]) -> dict[str, str]:
    figures = {"curves": curves(panels)}
    if any(panel.mlet for panel in panels):
        dims = [arm.dim for arm in panels[0].curve(SLT)]
        figures["gains"] = gain_maps(panels)
        figures["by-count"] = gains_by_count(panels)
        if panels[0].schema.one_valued:
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
        "biases": {name: asdict(found) for name, found in result.biases.items()},
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


def _arm_dict(panel: Panel, arm: ArmResult) -> dict[str, Any]:
    values: dict[str, Any] = {
        "method": arm.method.name,
        "kind": arm.method.kind,
        "dim": arm.dim,
        "inner_dim": arm.inner_dim,
        "tuning": {**asdict(arm.tuning), "failed": len(arm.tuning.failed)},
        "model_bytes": arm.model_bytes,
        "training_bytes": arm.training_bytes,
        "train_seconds": arm.seconds,
        "runs": run_dicts(panel, arm),
        "slices": arm.slices.mean(axis=0).tolist(),
    }
    for rows in ROWS:
        values[rows] = estimates(panel, arm, rows)
    if arm.method != SLT and panel.slt(arm.dim) is not None:
        found = reduction(panel, arm)
        values["gain"] = {m.name: asdict(panel.gain(arm, measure=m)) for m in panel.measures}
        for measure in panel.task.measures:
            values["gain"][f"{measure.name}_over_rows"] = panel.row_interval(arm, measure)
        values["reduction"] = found.to_dict() if found else None
    return values


def estimates(panel: Panel, arm: ArmResult, rows: Rows) -> dict[str, Any]:
    """The measures of an arm as plain values, by name."""
    return {m.name: asdict(arm.estimate(rows, m)) for m in panel.measures}


def run_dicts(panel: Panel, arm: ArmResult) -> list[dict[str, Any]]:
    """An arm's runs as plain values."""
    runs = [asdict(run) for run in arm.runs]
    valid = f"valid_{panel.task.headline.name}"
    return [{valid if key == "valid" else key: run[key] for key in run} for run in runs]
