"""A comparison as rows of text, the same in terminal, page and documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlet.experiments.results import ArmResult, Comparison, Measure, Rows

COLUMNS = (
    "method",
    "d",
    "k",
    "lr",
    "test AUC",
    "gain over SLT",
    "test logloss",
    "rare AUC",
    "rare logloss",
    "reduction",
    "size",
    "time",
)


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row of `COLUMNS` for each arm, ± being 95 % t-intervals over seeds."""
    rows: list[tuple[str, ...]] = []
    for arm in sorted(comparison.arms, key=lambda arm: (arm.dim, arm.inner_dim or 0)):
        single = arm.inner_dim is None

        gain = "" if single else comparison.gain(arm).signed()
        reduction = None if single else comparison.reduction(arm)
        rows.append(
            (
                arm.method,
                str(arm.dim),
                "" if single else str(arm.inner_dim),
                f"{arm.learning_rate:g}",
                _measured(arm, "test", "auc"),
                gain,
                _measured(arm, "test", "logloss"),
                _measured(arm, "rare", "auc"),
                _measured(arm, "rare", "logloss"),
                "" if single else str(reduction or "–"),
                human_bytes(arm.model_bytes),
                f"{arm.seconds:.1f} s",
            )
        )
    return rows


def _measured(arm: ArmResult, rows: Rows, measure: Measure) -> str:
    found = arm.estimate(rows, measure)
    return "–" if math.isnan(found.mean) else str(found)


def human_bytes(count: int) -> str:
    """Bytes with a binary unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def markdown(comparison: Comparison) -> str:
    """The comparison's table in Markdown."""
    return as_markdown(COLUMNS, table_rows(comparison))
