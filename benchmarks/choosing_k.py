"""Hold the prediction of ``mlet suggest-k`` against measured quality, for a comparison over k.

    mlet compare data --dims 4 --inner-dims 4,8,16,32,64,128 --seeds 10 --out by-k
    python benchmarks/choosing_k.py by-k --svg by-k.svg

Predicts from one epoch at the largest k of the comparison (seed 0, the step size chosen there) and
prints prediction and measurement for every k, their rank correlation (Kendall's τ), and what the
suggested mixture of inner dimensions gives, trained with the same seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from choosing_k_figure import draw
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau
from timing import write_json

from mlet.atomic import write_text
from mlet.data import PreparedDataset
from mlet.export import load_collapsed
from mlet.inspection import table_energies
from mlet.metrics import score
from mlet.settings import merge
from mlet.studies import CompareConfig
from mlet.studies.statistics import estimate
from mlet.theory import UpdateEnergy, factors_of, predicted_quality, suggest_inner_dims
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.load import load_trained
from mlet.training.predict import predict


class Comparison:
    """A finished one, and runs like those of its arm with the largest k."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = CompareConfig.load(folder / "compare.yaml")
        arms = json.loads((folder / "compare.json").read_text())["arms"]
        self.slt = next(arm for arm in arms if not arm["inner_dim"])
        self.mlet = sorted((a for a in arms if a["inner_dim"]), key=lambda arm: arm["inner_dim"])
        self.largest = self.mlet[-1]

    def run(self, name: str, seed: int, changes: dict[str, Any]) -> Path:
        """One in the folder ``name``, with other settings: as it is, or continued, or new."""
        base, arm = self.config.base, self.largest
        values = base.model_copy(
            update={"optimizer": base.optimizer.at(arm["learning_rate"])}
        ).model_dump(mode="json")
        own = self.config.mlet or {}
        tables = {"model": {**own, "dim": arm["dim"], "inner_dim": arm["inner_dim"]}}
        config = RunConfig.parse(
            merge(merge(values, merge(tables, {"training": {"seed": seed}})), changes), name
        )
        out = self.folder / name
        if RunDirectory(out).config_file.exists():
            resume(out)
        else:
            train(config, out)
        return out

    def energies_after_one_epoch(self) -> dict[str, UpdateEnergy]:
        run = self.run("short", 0, {"training": {"epochs": 1}})
        model, data = load_trained(RunDirectory(run))
        return table_energies(factors_of(model.embedding), data)


def test_auc(run: Path, data: PreparedDataset) -> float:
    model, _, _ = load_collapsed(RunDirectory(run).model_file)
    columns = data.split("test")
    return score(columns.labels["label"], predict(model, columns)).auc


def interval(gain: dict[str, float | None]) -> str:
    if gain["mean"] is None:
        return "–"  # as on rare rows where there are none
    margin = "" if gain["margin"] is None else f" ±{gain['margin']:.4f}"
    return f"{gain['mean']:+.4f}{margin}"


def print_rows(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for column in ("k", "predicted share", "test AUC", "gain", "gain on rare rows"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["k"]),
            f"{100 * row['kept']:.2f} %",
            f"{row['auc']['mean']:.4f}",
            interval(row["test"]),
            interval(row["rare"]),
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path, help="directory that mlet compare wrote")
    parser.add_argument("--title", default="", help="name of the data in the figure")
    parser.add_argument("--svg", type=Path, help="write the figure here")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    comparison = Comparison(options.comparison)
    seeds, slt, largest = comparison.config.seeds, comparison.slt, comparison.largest
    energies = comparison.energies_after_one_epoch()
    rows = [
        {
            "k": arm["inner_dim"],
            "kept": predicted_quality(energies, arm["inner_dim"]),
            "auc": arm["test"]["auc"],
            "test": arm["test"]["auc_gain"],
            "rare": arm["rare"]["auc_gain"],
        }
        for arm in comparison.mlet
    ]
    single = slt["test"]["auc"]["mean"]
    print_rows(rows, f"d = {slt['dim']}, {seeds} seeds; SLT test AUC {single:.4f}")
    tau = float(
        kendalltau([row["kept"] for row in rows], [row["auc"]["mean"] for row in rows]).statistic
    )
    print(f"rank correlation of prediction and measured AUC over k (Kendall's tau): {tau:+.2f}")

    suggestion = suggest_inner_dims(energies)
    data = PreparedDataset(comparison.config.base.data)
    changes = {"model": {"inner_dims": suggestion.inner_dims}}
    runs = [comparison.run(f"suggested/seed{seed}", seed, changes) for seed in range(seeds)]
    aucs = [test_auc(run, data) for run in runs]
    whole = sum(4 * e.inner_dim * (e.rows + e.dim) for e in energies.values())
    reference = [run["test"]["auc"] for run in largest["runs"]]
    difference = estimate(list(np.subtract(aucs, reference)))
    print(
        f"suggested {suggestion.inner_dims}: {suggestion.bytes / whole:.1%} of the memory of "
        f"k = {largest['inner_dim']}, test AUC {estimate(aucs).mean:.4f}, "
        f"{difference.mean:+.4f} ±{difference.margin or float('nan'):.4f} against it"
    )
    if options.svg:
        write_text(options.svg, draw(rows, slt, options.title))
    write_json(
        options.json,
        {
            "rows": rows,
            "kendall_tau": tau,
            "suggested": suggestion.inner_dims,
            "suggested_bytes": suggestion.bytes,
            "suggested_auc": aucs,
        },
    )


if __name__ == "__main__":
    main()
