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
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau
from timing import write_json

from mlet.atomic import write_text
from mlet.data import PreparedDataset
from mlet.export import load_collapsed
from mlet.inspection import table_energies
from mlet.metrics import score
from mlet.reporting.plots import MLET_COLOURS, SLT_COLOUR, figure_style, plain_axes, svg_text
from mlet.settings import load_yaml, merge
from mlet.studies.statistics import estimate
from mlet.theory import UpdateEnergy, factors_of, predicted_quality, suggest_inner_dims
from mlet.training import RunConfig, RunDirectory, resume, train
from mlet.training.config import OptimizersConfig
from mlet.training.load import load_trained
from mlet.training.predict import predict


def run_config(base: dict[str, Any], arm: dict[str, Any], **changes: Any) -> RunConfig:
    """The run of an arm, with its step size and other changes."""
    optimizer = OptimizersConfig.parse(base["optimizer"], "base")
    ratio = optimizer.dense.learning_rate / optimizer.tables.learning_rate
    rate = arm["learning_rate"]
    values = merge(
        base,
        {
            "model": {"dim": arm["dim"], "inner_dim": arm["inner_dim"]},
            "optimizer": {
                "tables": {"learning_rate": rate},
                "dense": {"learning_rate": rate * ratio},
            },
        },
    )
    return RunConfig.parse(merge(values, changes), "choosing_k")


def trained(config: RunConfig, out: Path) -> Path:
    """The finished run in ``out``: as it is, or continued, or new."""
    if RunDirectory(out).config_file.exists():
        resume(out)
    else:
        train(config, out)
    return out


def test_auc(run: Path, data: PreparedDataset) -> float:
    model, _, _ = load_collapsed(RunDirectory(run).model_file)
    columns = data.split("test")
    return score(columns.labels["label"], predict(model, columns)).auc


def energies_after_one_epoch(folder: Path, comparison: dict[str, Any]) -> dict[str, UpdateEnergy]:
    """From a run at the largest k."""
    arms = [arm for arm in comparison["arms"] if arm["inner_dim"]]
    largest = max(arms, key=lambda arm: arm["inner_dim"])
    config = run_config(comparison["base"], largest, training={"epochs": 1, "seed": 0})
    model, data = load_trained(RunDirectory(trained(config, folder / "short")))
    return table_energies(factors_of(model.embedding), data)


def interval(gain: dict[str, float | None]) -> str:
    if gain["mean"] is None:
        return "–"  # as on rare rows where there are none
    margin = "" if gain["margin"] is None else f" ±{gain['margin']:.4f}"
    return f"{gain['mean']:+.4f}{margin}"


def draw(rows: list[dict[str, Any]], slt: dict[str, Any], title: str) -> str:
    """Gain in test AUC against k, on all and on rare rows, with the predicted share beside it."""
    from matplotlib.figure import Figure

    ks = [row["k"] for row in rows]
    with figure_style():
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        gains, shares = figure.subplots(1, 2)
        for which, colour, label in (
            ("test", MLET_COLOURS[0], "all test rows"),
            ("rare", MLET_COLOURS[1], "rows with a rare category"),
        ):
            gains.errorbar(
                ks,
                [math.nan if row[which]["mean"] is None else row[which]["mean"] for row in rows],
                yerr=[row[which]["margin"] or 0 for row in rows],
                color=colour,
                marker="o",
                capsize=4,
                linewidth=2,
                label=label,
            )
        gains.axhline(0, color=SLT_COLOUR, linestyle="--", label=f"SLT, d = {slt['dim']}")
        gains.set_title(f"gain in AUC over SLT: {title}", fontsize=11)
        gains.legend(frameon=False, fontsize=9)
        kept = [100 * row["kept"] for row in rows]
        shares.plot(ks, kept, "s-", color=MLET_COLOURS[2], linewidth=2)
        shares.set_title("predicted: update energy kept, %", fontsize=11)
        for axes in (gains, shares):
            axes.set_xscale("log", base=2)
            axes.set_xticks(ks, [str(k) for k in ks])
            axes.set_xlabel("inner dimension k")
            plain_axes(axes)
        return svg_text(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path, help="directory that mlet compare wrote")
    parser.add_argument("--title", default="", help="name of the data in the figure")
    parser.add_argument("--svg", type=Path, help="write the figure here")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    comparison = json.loads((options.comparison / "compare.json").read_text())
    seeds = load_yaml(options.comparison / "compare.yaml")["seeds"]
    energies = energies_after_one_epoch(options.comparison, comparison)
    slt = next(arm for arm in comparison["arms"] if not arm["inner_dim"])
    rows = [
        {
            "k": arm["inner_dim"],
            "kept": predicted_quality(energies, arm["inner_dim"]),
            "auc": arm["test"]["auc"],
            "test": arm["test"]["auc_gain"],
            "rare": arm["rare"]["auc_gain"],
        }
        for arm in sorted(comparison["arms"], key=lambda arm: arm["inner_dim"] or 0)
        if arm["inner_dim"]
    ]
    single = slt["test"]["auc"]["mean"]
    table = Table(title=f"d = {slt['dim']}, {seeds} seeds; SLT test AUC {single:.4f}")
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
    tau = float(
        kendalltau([row["kept"] for row in rows], [row["auc"]["mean"] for row in rows]).statistic
    )
    print(f"rank correlation of prediction and measured AUC over k (Kendall's tau): {tau:+.2f}")

    suggestion = suggest_inner_dims(energies)
    largest = max(
        (arm for arm in comparison["arms"] if arm["inner_dim"]), key=lambda arm: arm["inner_dim"]
    )
    data = PreparedDataset(Path(comparison["base"]["data"]))
    aucs = [
        test_auc(
            trained(
                run_config(
                    comparison["base"],
                    largest,
                    model={"inner_dims": suggestion.inner_dims},
                    training={"seed": seed},
                ),
                options.comparison / "suggested" / f"seed{seed}",
            ),
            data,
        )
        for seed in range(seeds)
    ]
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
