"""The report of a search: a page, a table in Markdown, all numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlet.atomic import write_text
from mlet.reporting.page import render
from mlet.reporting.plots import on_page
from mlet.reporting.text import as_markdown, human_bytes, without_nan
from mlet.studies.shrink.figures import pareto
from mlet.studies.shrink.points import Point
from mlet.studies.shrink.result import Choice, ShrinkResult
from mlet.task import Metric


def columns(result: ShrinkResult) -> tuple[str, ...]:
    """Of the table of choices."""
    headline, *others = result.study.task.measures
    second = others[0] if others else headline
    return (
        "",
        "model",
        "bytes of tables",
        "times smaller",
        f"{headline.label}, search",
        f"test {headline.label}",
        "to the reference",
        f"test {second.label}",
        "trials",
    )


def rows(result: ShrinkResult) -> list[tuple[str, ...]]:
    """The reference, then what was chosen under each restriction."""
    found = [_row(result, result.reference)]
    for name, choice in result.choices.items():
        found.append(
            (name, "none that fits", *["–"] * 7) if choice is None else _row(result, choice)
        )
    return found


def _row(result: ShrinkResult, choice: Choice) -> tuple[str, ...]:
    headline, *others = result.study.task.measures
    second = others[0] if others else headline
    difference = choice.difference(result.reference, headline).signed()
    return (
        choice.name,
        described(result, choice.point),
        f"{choice.point.bytes:,}",
        f"{choice.times_smaller(result.reference):.1f}",
        f"{choice.point.scores[headline.name]:.4f}",
        str(choice.estimate(headline)),
        "–" if choice is result.reference else difference,
        str(choice.estimate(second)),
        str(choice.trials),
    )


def described(result: ShrinkResult, point: Point) -> str:
    """What a model is, in a few words."""
    setting = point.setting
    dims = result.field_dims(point)
    names = {d: [n for n in dims if dims[n] == d] for d in sorted(set(dims.values()), reverse=True)}
    parts = [f"d = {next(iter(names))}"]
    if len(names) > 1:
        parts = ["d = " + ", ".join(f"{d} ({_fields(some)})" for d, some in names.items())]
    if "inner_dim" in setting:
        parts.append(f"k = {max(int(setting['inner_dim']), 2 * int(setting['dim']))}")
    if point.min_count > 1:
        parts.append(f"min_count {point.min_count}, {int(setting['rare_rows'])} shared")
    return ", ".join([*parts, point.precision])


def _fields(names: list[str], most: int = 3) -> str:
    """A few names, or how many there are."""
    return ", ".join(names) if len(names) <= most else f"{len(names)} fields"


def sentences(result: ShrinkResult) -> Iterator[str]:
    """What came of it, for a reader in a hurry."""
    headline, chosen, reference = result.study.task.headline, result.chosen, result.reference
    difference = chosen.difference(reference, headline)
    yield (
        f"Tables of {human_bytes(chosen.point.bytes)}, {chosen.times_smaller(reference):.1f} times "
        f"smaller than the reference's {human_bytes(reference.point.bytes)}; test {headline.label} "
        f"{chosen.estimate(headline)}, the reference {reference.estimate(headline)}, difference "
        f"{difference.signed()} over {result.study.seeds} fresh seeds."
    )
    if result.study.tolerance is not None:
        loss = -headline.quality(difference.mean)
        within = "within" if loss <= result.study.tolerance else "not within"
        yield f"On test the mean is {within} the tolerance of {result.study.tolerance:g}."
    parts = {
        name: choice.times_smaller(reference)
        for name, choice in list(result.choices.items())[1:]
        if choice is not None
    }
    if parts:
        listed = ", ".join(f"{times:.1f} times {name}" for name, times in parts.items())
        yield f"The best of the same search: {listed}."


def write_shrink_report(result: ShrinkResult, out: Path) -> Path:
    """Write ``report.html``, its figures, ``tables.md`` and ``shrink.json``; returns the page."""
    figures = {}
    for metric in result.study.task.measures:
        svg = pareto(result, metric)
        write_text(out / f"pareto-{metric.name}.svg", svg + "\n")
        figures[metric.label] = on_page(svg, _alt(result, metric))
    names = columns(result)
    page = render(
        "shrink.html.j2",
        result=result,
        figures=figures,
        columns=names,
        rows=rows(result),
        sentences=list(sentences(result)),
        headline=result.study.task.headline,
        study_yaml=result.study.to_yaml(),
    )
    path = out / "report.html"
    write_text(path, page)
    write_text(out / "tables.md", as_markdown(names, rows(result)))
    write_text(out / "shrink.json", json.dumps(without_nan(to_dict(result)), indent=1) + "\n")
    return path


def _alt(result: ShrinkResult, metric: Metric) -> str:
    """What a figure shows, for who does not see it."""
    chosen = result.chosen.point
    return (
        f"validation {metric.label} of {len(result.points)} models against the bytes of their "
        f"tables, with the Pareto front; chosen: {human_bytes(chosen.bytes)} at "
        f"{chosen.scores[metric.name]:.4f}, the reference "
        f"{human_bytes(result.reference.point.bytes)} at "
        f"{result.reference.point.scores[metric.name]:.4f}"
    )


def to_dict(result: ShrinkResult) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "study": result.study.model_dump(mode="json"),
        "machine": result.machine,
        "seconds": result.seconds,
        "bar": result.bar,
        "given_up": dict(result.given_up),
        "model": {"file": result.model_file.name, "seed": result.seed},
        "reference": _choice(result, result.reference),
        "choices": {
            name: None if choice is None else _choice(result, choice)
            for name, choice in result.choices.items()
        },
        "points": [asdict(point) for point in result.points],
    }


def _choice(result: ShrinkResult, choice: Choice) -> dict[str, Any]:
    measures = result.study.task.measures
    return {
        "point": asdict(choice.point),
        "field_dims": result.field_dims(choice.point),
        "times_smaller": choice.times_smaller(result.reference),
        "trials": choice.trials,
        "valid": {name: list(values) for name, values in choice.valid.items()},
        "test": {name: list(values) for name, values in choice.test.items()},
        "means": {metric.name: asdict(choice.estimate(metric)) for metric in measures},
        "differences": {
            metric.name: asdict(choice.difference(result.reference, metric)) for metric in measures
        },
    }
