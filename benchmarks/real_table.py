"""The tables that open docs/results.md: the recipe against tuned single-layer tables on real data.

    MLET_DATA=../shared/data mlet sweep studies/real.yaml --out real
    MLET_DATA=../shared/data mlet sweep studies/real-small.yaml --out real-small
    python benchmarks/real_table.py real real-small

Reads what the studies left; arms that are not finished are left out. A gain is bold where its 95 %
t-interval over seeds, paired, leaves zero out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlet.reporting.text import as_markdown
from mlet.studies import StudyConfig, StudyResult
from mlet.studies.ledger import Ledger
from mlet.studies.reductions import mean_of, mean_reduction, points_of
from mlet.studies.results import ArmResult, Panel, Rows, collect
from mlet.studies.statistics import Estimate
from mlet.task import Metric

#: The widest dimension that the mean reduction is over: beyond it curves have no wider table.
WIDEST = 16

Pairs = list[tuple[Panel, ArmResult]]


def read(out: Path) -> StudyResult:
    """What is finished of a study in its folder."""
    study = StudyConfig.load(out / "study.yaml")
    data = {name: out / "data" / name for name in study.datasets}
    there = {name: path for name, path in data.items() if path.exists()}
    study = study.model_copy(update={"datasets": {name: study.datasets[name] for name in there}})
    ledger = Ledger(study, f"sqlite:///{(out / 'study.db').resolve()}")
    return collect(study, out, ledger, there, seconds=0.0, jobs=1, biases={})


def gain(panel: Panel, arm: ArmResult, rows: Rows, measure: Metric) -> str:
    """A gain, bold where seeds tell it from nothing."""
    found: Estimate = panel.gain(arm, rows, measure)
    told = found.margin is not None and abs(found.mean) > found.margin
    text = f"{found.mean:+.4f}"
    return f"**{text}**" if told else text


def table(panels: list[Panel], dims: list[int], rows: Rows, measure: Metric) -> str:
    """Single-layer quality and the recipe's gain, by dimension."""
    lines = []
    for panel in panels:
        cells = [panel.dataset, panel.model, panel.optimizer]
        for dim in dims:
            slt = panel.slt(dim)
            arm = next((arm for arm in panel.mlet if arm.dim == dim), None)
            if slt is None or arm is None:
                cells.append("")
                continue
            mean = slt.estimate(rows, measure).mean
            cells.append(f"{mean:.4f} {gain(panel, arm, rows, measure)}")
        if not any(cells[3:]):
            continue  # nothing of it is finished on both sides
        if rows == "test" and measure == panel.task.headline:
            pairs = up_to_widest([panel])
            cells.append(mean_reduction(pairs) if pairs else "")
        lines.append(tuple(cells))
    columns = ["data", "model", "optimizer", *(f"d = {dim}" for dim in dims)]
    if len(lines[0]) > len(columns):
        columns.append(f"mean reduction, d ≤ {WIDEST}")
    return as_markdown(columns, lines)


def up_to_widest(panels: list[Panel]) -> Pairs:
    """All arms of the recipe up to the widest dimension of the mean."""
    return [(panel, arm) for panel in panels for arm in panel.two_layer if arm.dim <= WIDEST]


def summary(panels: list[Panel]) -> str:
    """The whole in a few lines."""
    lines = []
    for name in [*dict.fromkeys(panel.dataset for panel in panels), "all"]:
        pairs = up_to_widest([panel for panel in panels if name in (panel.dataset, "all")])
        outcomes = [panel.outcome(arm) for panel, arm in pairs]
        points = points_of(pairs)
        if not points:
            continue
        mean = mean_reduction(pairs)
        if name == "all":  # sets without seeds or rows in common, so no interval
            bounds = sum(point.kind != "exact" for point in points)
            mean = f"{mean_of(points):.2g}×, {bounds} of {len(points)} bounds"
        lines.append(
            (
                name,
                *(str(outcomes.count(kind)) for kind in ("better", "unclear", "worse")),
                mean,
            )
        )
    return as_markdown(("data", "better", "not told apart", "worse", "mean reduction"), lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of the studies")
    arguments = parser.parse_args()
    results = [read(folder) for folder in arguments.folders]
    panels = [panel for result in results for panel in result.panels]
    dims = sorted({arm.dim for panel in panels for arm in panel.arms})
    auc, logloss = panels[0].task.measures[:2]
    print(summary(panels))
    for title, rows, measure in (
        ("Test AUC of a single layer, and the recipe's gain", "test", auc),
        ("Test logloss (lower is better)", "test", logloss),
        ("AUC over test rows with a rare category", "rare", auc),
    ):
        print(f"\n{title}:\n")
        print(table(panels, dims, rows, measure))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
