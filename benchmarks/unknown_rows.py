"""What a category that training never saw is best served: rules for row 0, on one data set.

One run is trained for each seed and arm; its row 0 is then filled by every rule, and the test rows
are scored: all of them, and those that hold a category that training never saw.

    python benchmarks/unknown_rows.py DATA --out unknown --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import environment, write_json
from torch import Tensor

from mlet.data import PreparedDataset
from mlet.models import CTRModel, build_model
from mlet.nn.stacked_tables import StackedTables
from mlet.studies.statistics import estimate
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.load import load_trained
from mlet.training.predict import predict
from mlet.training.presets import RECIPE, with_preset
from mlet.training.unknown import least_seen

#: Row 0 of rows (n × w), given the categories' training counts (n,); every category has one.
RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean by count": lambda rows, counts: (rows * counts[:, None]).sum(0) / counts.sum(),
    "mean of all alike": lambda rows, counts: rows[counts > 0].mean(0),
    "mean of those seen once": lambda rows, counts: rows[counts == counts[counts > 0].min()].mean(
        0
    ),
    "mean of the tenth seen least": lambda rows, counts: rows[least_seen(counts.numpy())].mean(0),
}


def stacks(model: CTRModel) -> list[StackedTables]:
    """The tables of a model, in an order of its own."""
    return [part for part in model.modules() if isinstance(part, StackedTables)]


@torch.no_grad()
def filled(model: CTRModel, drawn: CTRModel, data: PreparedDataset, rule: str) -> None:
    """Give every table without a training row of id 0 what a rule says."""
    for table, first in zip(stacks(model), stacks(drawn), strict=True):
        for name in table.sizes:
            counts = torch.from_numpy(np.array(data.training_counts[name]))
            if counts[0] or len(counts) != table.sizes[name]:
                continue
            rows = table.rows_of(name)
            if rule == "as drawn":
                rows[0] = first.rows_of(name)[0]
            else:
                rows[0] = RULES[rule](rows, counts)


def measured(data: PreparedDataset, config: RunConfig, out: Path) -> dict[str, dict[str, float]]:
    """Test AUC and logloss by rule, of one run."""
    if not (out.exists() and RunDirectory(out).finished):
        train(config, out)
    model, _ = load_trained(RunDirectory(out))
    torch.manual_seed(config.training.seed)
    drawn = build_model(RunDirectory(out).config().model, data.schema)
    split = data.split("test")
    new = data.rarest_counts("test") == 0
    labels = np.asarray(split.labels[model.task.label])
    found = {}
    for rule in ("as drawn", *RULES):
        filled(model, drawn, data, rule)
        scores = predict(model, split)
        every, some = (
            model.task.score(labels[rows], scores[rows]) for rows in (np.full(len(new), True), new)
        )
        found[rule] = {
            name: scored[metric.name]
            for metric in model.task.measures
            for name, scored in ((metric.name, every), (f"{metric.name}_new", some))
        }
    return found


def main() -> None:
    """Train, score by every rule, print means over seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="prepared data set")
    parser.add_argument("--out", type=Path, default=Path("unknown"), help="folder of the runs")
    parser.add_argument("--model", default="dlrm")
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    data = PreparedDataset(options.data)
    arms = {"SLT": {"inner_dim": None}, "recipe": {}}
    results: dict[str, list[dict[str, dict[str, float]]]] = {}
    for arm, changes in arms.items():
        for seed in range(options.seeds):
            values: dict[str, Any] = {
                "data": str(options.data.resolve()),
                "model": {"name": options.model, "dim": options.dim, **changes},
                "training": {
                    "epochs": options.epochs,
                    "batch_size": options.batch_size,
                    "seed": seed,
                    "threads": 1,
                },
            }
            config = RunConfig.parse(with_preset(RECIPE, values), "benchmark")
            run = options.out / f"{arm}-{seed}"
            results.setdefault(arm, []).append(measured(data, config, run))
    shares = float((data.rarest_counts("test") == 0).mean())
    print(
        f"{options.data}: {shares:.1%} of the test rows hold a category that training never saw\n"
    )
    names = list(results["SLT"][0]["as drawn"])
    print("| arm | row 0 |", " | ".join(names), "|")
    print("| --- | --- |", " | ".join("---" for _ in names), "|")
    for arm, runs in results.items():
        for rule in runs[0]:
            means = [np.mean([run[rule][name] for run in runs]) for name in names]
            differences = [
                estimate([run[rule][name] - run["as drawn"][name] for run in runs]).signed()
                for name in names
            ]
            cells = (f"{mean:.4f} ({d})" for mean, d in zip(means, differences, strict=True))
            print("|", " | ".join([arm, rule, *cells]), "|")
    if options.json:
        write_json(options.json, {"new_share": shares, "runs": results, **environment()})


if __name__ == "__main__":
    main()
