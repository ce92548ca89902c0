"""``mlet evaluate``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from mlet.cli.console import print_json, say, show_table
from mlet.cli.settings import RunData, parse_integers
from mlet.data.frequency import DEFAULT_EDGES
from mlet.data.schema import SplitName
from mlet.task import Task
from mlet.training.evaluate import ScoredSplit, SliceScores, by_count
from mlet.training.groups import GroupScores, category_slices, check_columns, group_scores
from mlet.training.load import load_for_evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory or collapsed .safetensors file.")],
    data: RunData = None,
    split: Annotated[SplitName, typer.Option()] = "test",
    field: Annotated[
        str | None, typer.Option(help="Slice by this field's counts; default: the rarest of all.")
    ] = None,
    edges: Annotated[str, typer.Option(help="Training counts where slices begin.")] = ",".join(
        map(str, DEFAULT_EDGES)
    ),
    gauc: Annotated[
        list[str] | None,
        typer.Option(
            help="Also AUC within the rows of each value of this field or kept column, or of the "
            "data set's group (the default), averaged by rows. Repeatable."
        ),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(help="Also slice by the values of this field or kept column. Repeatable."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Samples for the intervals.", min=1)] = 200,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """AUC, logloss and calibration, overall and by category frequency, with 95 % intervals.

    A row is in the slice of its rarest category's training count. Calibration is predicted over
    observed clicks. Where rows have weights, all of it is weighted. GAUC is the AUC within groups
    of rows, as of a user, averaged by their rows, over groups with clicks and others.
    """
    model, dataset = load_for_evaluation(run, data)
    declared = [dataset.schema.group] if dataset.schema.group else []
    grouped, sliced = list(dict.fromkeys(gauc or declared)), list(dict.fromkeys(slices or []))
    check_columns(dataset, grouped, sliced)
    scored = ScoredSplit(model, dataset, split)
    found = by_count(scored, field=field, edges=parse_integers(edges, "--edges"), samples=bootstrap)
    groups = {name: group_scores(scored, name, samples=bootstrap) for name in grouped}
    by_category = {name: category_slices(scored, name, samples=bootstrap) for name in sliced}
    if json:
        print_json(
            {"run": str(run), "split": split, "field": field, "slices": _plain(found, "counts")}
            | ({"bayes": best} if (best := dataset.schema.splits[split].best) else {})
            | ({"gauc": {n: _plain_group(one) for n, one in groups.items()}} if groups else {})
            | _by_category(by_category)
        )
        return
    title = f"{split} split of {dataset.root}"
    _print_slices(found, title, "rarest count", model.task)
    best = dataset.schema.splits[split].best
    known = [f"{m.label} {best[m.name]:.4f}" for m in model.task.metrics if m.name in best]
    if known:
        say(f"best possible: {', '.join(known)}")
    for name, group in groups.items():
        say(_group_line(name, group, len(scored.labels)))
    for name, parts in by_category.items():
        _print_slices(parts, f"{title}, by {name}", name, model.task)


def _by_category(slices: dict[str, list[SliceScores]]) -> dict[str, Any]:
    plain = {name: _plain(parts, "category") for name, parts in slices.items()}
    return {"by_category": plain} if plain else {}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _plain_group(group: GroupScores) -> dict[str, Any]:
    return {
        "value": _number(group.value),
        "low": _number(group.interval.low),
        "high": _number(group.interval.high),
        "groups": group.groups,
        "rows": group.rows,
        "no_group": group.no_group,
    }


def _group_line(name: str, group: GroupScores, rows: int) -> str:
    if not group.groups:
        return f"GAUC by {name}: –, no group has rows of both labels"
    low, high = group.interval
    none = f"; {group.no_group:,} rows are in no group" if group.no_group else ""
    return (
        f"GAUC by {name}: {group.value:.4f}  [{low:.4f}, {high:.4f}] over {group.groups:,} groups "
        f"with both labels, which have {group.rows:,} of {rows:,} rows{none}"
    )


def _plain(slices: list[SliceScores], what: str) -> list[dict[str, Any]]:
    """Slices for JSON, their names under ``what``."""
    return [
        {
            what: entry.name,
            "rows": entry.rows,
            "clicks": entry.clicks,
            **({} if entry.weight is None else {"weight": entry.weight}),
            **{
                measure: {
                    "value": _number(entry.scores[measure]),
                    "low": _number(interval.low),
                    "high": _number(interval.high),
                }
                for measure, interval in entry.intervals.items()
            },
        }
        for entry in slices
    ]


def _print_slices(slices: list[SliceScores], title: str, what: str, task: Task) -> None:
    rows = []
    for entry in slices:
        cells = []
        for metric in task.metrics:
            value, (low, high) = entry.scores[metric.name], entry.intervals[metric.name]
            shown = f"{value:.4f}  [{low:.4f}, {high:.4f}]"
            cells.append("–" if math.isnan(value) else shown)
        weight = [] if entry.weight is None else [f"{entry.weight:,.6g}"]
        rows.append((entry.name, f"{entry.rows:,}", *weight, *cells))
    weights = [] if slices[0].weight is None else ["weight"]
    columns = (what, "rows", *weights, *(metric.label for metric in task.metrics))
    show_table(title, columns, rows)
