"""Ratios, what is asked of them, and a table that says whether they have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Target:
    """A ratio and what is asked of it.

    Attributes:
        name: what is divided by what.
        value: as measured.
        must, aim: bounds; upper ones unless ``at_least``. None where nothing is asked.
        at_least: whether more is better.
    """

    name: str
    value: float
    must: float | None
    aim: float | None
    at_least: bool = False

    def meets(self, bound: float | None) -> bool:
        if bound is None:
            return True
        return self.value >= bound if self.at_least else self.value <= bound

    def as_row(self) -> dict[str, object]:
        row = asdict(self)
        return {**row, "pass": self.meets(self.must), "pass_aim": self.meets(self.aim)}


def print_targets(targets: Sequence[Target], title: str) -> None:
    """All, with pass or miss."""
    table = Table(title=title, title_justify="left")
    for column in ("ratio", "measured", "must", "aim", ""):
        table.add_column(column, justify="left" if column in ("ratio", "") else "right")
    for target in targets:
        sign = "≥" if target.at_least else "≤"
        bounds = ["" if b is None else f"{sign} {b:g}" for b in (target.must, target.aim)]
        verdict = "" if target.must is None else "pass" if target.meets(target.must) else "MISS"
        if verdict == "pass" and target.aim is not None and target.meets(target.aim):
            verdict = "pass, aim met"
        table.add_row(target.name, f"{target.value:.2f}", *bounds, verdict)
    Console().print(table)
