"""The report of a comparison: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from mlet.atomic import write_text
from mlet.experiments.plots import auc_curves
from mlet.experiments.results import Comparison
from mlet.experiments.table import COLUMNS, table_rows
from mlet.pages import render


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write ``report.html`` and its figure ``curves.svg`` into ``out``; returns the page's path."""
    svg = auc_curves(comparison)
    gains = sorted(
        ((comparison.gain(arm).mean, arm) for arm in comparison.mlet_arms),
        key=lambda pair: pair[0],
    )
    outcomes = [comparison.outcome(arm) for arm in comparison.mlet_arms]
    page = render(
        "comparison.html.j2",
        comparison=comparison,
        schema=comparison.schema,
        base_yaml=comparison.base.to_yaml(),
        columns=COLUMNS,
        rows=table_rows(comparison),
        svg=Markup(svg),
        gains=gains,
        outcomes=outcomes,
    )
    write_text(out / "curves.svg", svg)
    path = out / "report.html"
    write_text(path, page)
    return path
