"""What successive halving saves, and what it costs in quality: one study with it and without.

Both have the same arms, trials, ranges, seeds and stopping rule; every trial of the second is
trained to its end. Seconds are those of training, of tuning trials alone, summed over runs.

    MLET_DATA=../shared/data python benchmarks/halving.py studies/real-quick.yaml --out halving
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from timing import environment, write_json

from mlet.studies import StudyConfig, StudyResult, sweep


def tuning_seconds(out: Path) -> float:
    """Of all trials of a study: each run's seconds at its last validation."""
    seconds = 0.0
    for metrics in out.glob("runs/*/*/*/*/*-seed0/metrics.jsonl"):
        seconds += json.loads(metrics.read_text().splitlines()[-1])["seconds"]
    return seconds


def compared(halved: StudyResult, full: StudyResult) -> list[dict[str, Any]]:
    """For each arm the quality of the settings that were chosen in both ways."""
    headline = full.study.task.headline
    rows = []
    for one, other in zip(halved.panels, full.panels, strict=True):
        for mine, theirs in zip(one.arms, other.arms, strict=True):
            row: dict[str, Any] = {"arm": mine.arm.name, "given_up": mine.tuning.given_up}
            for name, arm in (("halved", mine), ("full", theirs)):
                row[f"{name}_valid"] = max(run.valid for run in arm.runs if run.seed == 0)
                row[f"{name}_test"] = arm.estimate("test", headline).mean
            rows.append(row)
    return rows


def main() -> None:
    """Run both, print what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, help="YAML file of a study with tuning.halving")
    parser.add_argument("--out", type=Path, default=Path("halving"), help="folder for both")
    parser.add_argument("--jobs", type=int, default=None, help="runs at once")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    config = StudyConfig.load(arguments.study)
    if config.tuning.halving is None:
        parser.error(f"{arguments.study} has no tuning.halving")
    full = config.model_copy(update={"tuning": config.tuning.model_copy(update={"halving": None})})
    results = [
        sweep(study, arguments.out / name, jobs=arguments.jobs)
        for name, study in (("halved", config), ("full", full))
    ]
    seconds = {name: tuning_seconds(arguments.out / name) for name in ("halved", "full")}
    rows = compared(*results)
    print(f"{'arm':<44}given up  AUC on validation  full     on test  full")
    for row in rows:
        print(
            f"{row['arm']:<44}{row['given_up']:>8}  {row['halved_valid']:17.4f}  "
            f"{row['full_valid']:.4f}  {row['halved_test']:7.4f}  {row['full_test']:.4f}"
        )
    ratio = seconds["halved"] / seconds["full"]
    cost = sum(row["full_test"] - row["halved_test"] for row in rows) / len(rows)
    print(f"tuning took {ratio:.2f} of the time; mean cost {cost:+.4f} on test")
    if arguments.json:
        found = {"seconds": seconds, "ratio": ratio, "cost": cost, "arms": rows}
        write_json(arguments.json, {**environment(), **found})


if __name__ == "__main__":
    main()
