"""Which property of a data set foretells what the recipe gains: a rule for each, and its error.

    mlet sweep studies/synthetic-kinds.yaml --out kinds
    python benchmarks/when_it_helps.py kinds real

A point is a data set with a model and an optimizer: the mean gain in AUC of the recipe over tuned
single-layer tables, over all dimensions that both have up to 16. A rule is a straight line over one
property, fitted to all data sets but one and tried on that one; its error is compared with that of
the mean gain of the other sets, and of expecting no gain.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from real_table import WIDEST, read
from scipy import stats

from mlet.data import PreparedDataset
from mlet.data.co_occurrence import kept_co_occurrence_vectors
from mlet.data.properties import DatasetProperties, properties
from mlet.reporting.text import as_markdown
from mlet.studies.results import Panel
from mlet.theory.spectra import Spectrum

#: Below this many data sets a line and its error say nothing.
FEWEST = 5
#: Of the vectors of co-occurrence: the recipe's k.
_WIDTH = 64


@dataclass(frozen=True)
class Point:
    """What was gained on a data set, and what could be known of it.

    Attributes:
        data, model, optimizer: where.
        gain: mean AUC of the recipe less that of a single layer.
        known: properties by name; the last needs single-layer runs.
    """

    data: str
    model: str
    optimizer: str
    gain: float
    known: dict[str, float]


def rank_share(data: PreparedDataset) -> float:
    """Effective rank of the vectors of co-occurrence, as a share of their width; mean of fields."""
    vectors = kept_co_occurrence_vectors(data, _WIDTH).values()
    found = [
        Spectrum(torch.linalg.svdvals(rows.double())).effective_rank / _WIDTH
        for rows in vectors
        if len(rows) > _WIDTH
    ]
    return float(np.mean(found)) if found else float("nan")


def known_of(found: DatasetProperties) -> dict[str, float]:
    """What is known before anything is trained."""
    largest = max(found.fields, key=lambda field: field.categories)
    return {
        "fields": float(len(found.fields)),
        "log10 training rows": float(np.log10(found.rows)),
        "log10 rows for each category": float(np.log10(found.rows_per_category)),
        "share of rare test rows": found.rare_rows,
        "share of test rows with a new category": found.unseen_rows,
        "rare, but not new": found.rare_rows - found.unseen_rows,
        "Zipf exponent of the largest field": largest.zipf,
    }


def point(panel: Panel, before: dict[str, float]) -> Point | None:
    """A panel's, from what is finished of it."""
    headline = panel.task.headline
    pairs = [
        (panel.slt(arm.dim), arm)
        for arm in panel.two_layer
        if arm.dim <= WIDEST and panel.slt(arm.dim) is not None
    ]
    if not pairs:
        return None
    quality = {slt.dim: slt.estimate("test", headline).mean for slt, _ in pairs if slt is not None}
    gains = [panel.gain(arm, "test", headline).mean for _, arm in pairs]
    slope = quality[max(quality)] - quality[min(quality)]
    known = {**before, "what single layers gain from the smallest d to 16": slope}
    return Point(panel.dataset, panel.model, panel.optimizer, float(np.mean(gains)), known)


def left_out_errors(points: list[Point], rule: Callable[[list[Point], Point], float]) -> float:
    """Root mean square error of a rule made from the other data sets."""
    errors = []
    for name in dict.fromkeys(point.data for point in points):
        others = [point for point in points if point.data != name]
        errors += [rule(others, p) - p.gain for p in points if p.data == name]
    return float(np.sqrt(np.mean(np.square(errors))))


def line(name: str) -> Callable[[list[Point], Point], float]:
    """A straight line over one property."""

    def rule(others: list[Point], of: Point) -> float:
        slope, start = np.polyfit([p.known[name] for p in others], [p.gain for p in others], 1)
        return float(start + slope * of.known[name])

    return rule


def main() -> None:
    """Print the points and the rules."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of the studies")
    parser.add_argument("--model", help="only panels of this model")
    parser.add_argument("--optimizer", help="only panels of this optimizer")
    arguments = parser.parse_args()
    points: list[Point] = []
    for out in arguments.folders:
        known: dict[str, dict[str, float]] = {}
        for panel in read(out).panels:
            wanted = arguments.model in (None, panel.model)
            if not wanted or arguments.optimizer not in (None, panel.optimizer):
                continue
            if panel.dataset not in known:
                data = PreparedDataset(out / "data" / panel.dataset)
                known[panel.dataset] = {
                    **known_of(properties(data)),
                    "effective rank of co-occurrence": rank_share(data),
                }
            found = point(panel, known[panel.dataset])
            points += [] if found is None else [found]
    if not points:
        raise SystemExit("no arm is finished on both sides")
    names = list(points[0].known)
    columns = ["data", "model", "optimizer", "gain", *names]
    cells = [
        (p.data, p.model, p.optimizer, f"{p.gain:+.4f}", *(f"{p.known[n]:.3g}" for n in names))
        for p in points
    ]
    print(as_markdown(columns, cells))
    sets = {point.data for point in points}
    if len(sets) < FEWEST:
        print(f"\n{len(sets)} data sets: too few for a rule, which needs {FEWEST}.")
        return
    print(f"\nErrors on a data set that was left out, in AUC, of {len(points)} points:\n")
    rules = [
        ("no gain", float("nan"), left_out_errors(points, lambda others, of: 0.0)),
        (
            "the mean gain of the others",
            float("nan"),
            left_out_errors(points, lambda others, of: float(np.mean([p.gain for p in others]))),
        ),
    ]
    for name in names:
        there = [point for point in points if np.isfinite(point.known[name])]
        tau = stats.kendalltau([p.known[name] for p in there], [p.gain for p in there])
        rules.append((name, float(tau.statistic), left_out_errors(there, line(name))))
    print(
        as_markdown(
            ("rule", "Kendall's tau with the gain", "error"),
            [(name, f"{tau:+.2f}", f"{error:.4f}") for name, tau, error in rules],
        )
    )


if __name__ == "__main__":
    main()
