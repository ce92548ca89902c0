"""Rolling training on data with time: a model that goes on, quarter by quarter, beside one that is
trained again each time on all rows so far.

Singles of both professional tennis tours, by the quarter in which their tournament began. Of every
quarter four fifths of the rows are trained on, a tenth is for early stopping (the column ``part``);
then every model scores all rows of the next quarter, which none has seen. What a row is scored by
has no calendar: ``year`` is left out.

    MLET_DATA=../shared/data python benchmarks/rolling.py --json rolling.json

Arms: ``retrained`` begins anew each time (``mlet prepare`` of all rows since --since, ``mlet
train``); ``rolling`` goes on (``mlet prepare --extend`` of the new rows, ``mlet train --from``)
with the same settings, ``once`` in one pass over the new rows, ``anew`` in one pass with optimizer
states begun anew; ``left`` is the model of before the first block, as it was. Seconds are those of
preparation and training together, in one process, arms one after the other in every block.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from timing import environment, write_json

from mlet.data import prepare
from mlet.data.readers import TableSchema, TableSource
from mlet.metrics import score
from mlet.reporting.text import as_markdown
from mlet.scoring import Predictor
from mlet.studies.statistics import estimate
from mlet.training import RunConfig, train
from mlet.training.grow import with_grown
from mlet.training.presets import RECIPE, with_preset

FIELDS = [
    "playerA", "playerB", "countryA", "countryB", "handA", "handB", "ageA", "ageB", "surface",
    "level", "round", "tournament", "best_of",
]  # fmt: skip
SCHEMA = TableSchema.model_validate(
    {"label": "label", "categorical": FIELDS, "split": {"column": "part"}}
)
#: Arms that go on, and what of their settings is not the run's before.
GOING_ON: dict[str, dict[str, Any]] = {
    "rolling": {},
    "once": {"training": {"epochs": 1}},
    "anew": {"training": {"epochs": 1}, "grow": {"states": False}},
}
ARMS = ("retrained", *GOING_ON, "left")


class Seconds(NamedTuple):
    """On the clock, and of the processor, which other work on the machine disturbs less."""

    clock: float
    processor: float


@dataclass
class Answers:
    """By arm, a value for each seed and block."""

    auc: dict[str, list[list[float]]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    seconds: dict[str, list[float]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    processor: dict[str, list[float]] = field(default_factory=lambda: {arm: [] for arm in ARMS})

    def add_seconds(self, arm: str, *parts: Seconds) -> None:
        self.seconds[arm].append(sum(part.clock for part in parts))
        self.processor[arm].append(sum(part.processor for part in parts))


def blocks_of(
    since: int, until: int, blocks: int, out: Path, *, months: int = 3, every: int = 1
) -> list[Path]:
    """Files of rows: all from one year until another, then a block of so many months each."""
    data = Path(os.environ.get("MLET_DATA", "../shared/data"))
    year, month = pl.col("time") // 10_000, pl.col("time") // 100 % 100
    rows = pl.read_parquet(data / "tennis" / "tennis.parquet").gather_every(every)
    rows = rows.filter(year >= since).with_columns(
        block=pl.when(year < until).then(-1).otherwise(((year - until) * 12 + month - 1) // months)
    )
    files = []
    out.mkdir(parents=True)
    for number in range(-1, blocks):
        files.append(out / f"{number + 1}.parquet")
        rows.filter(pl.col("block") == number).drop("block", "year").write_parquet(files[-1])
    return files


def timed(work: Callable[[], object]) -> Seconds:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - clock, time.process_time() - processor)


def trained(values: dict[str, Any], out: Path) -> Seconds:
    """Train a run; its seconds."""
    for known in Path(values["data"]).glob("co_occurrence-*.pt"):
        known.unlink()  # each run would have to make them
    return timed(lambda: train(RunConfig.parse(values, "benchmark"), out))


def auc(run: Path, rows: pl.DataFrame) -> float:
    """Of rows that the run's model has not seen, all as they come."""
    return score(rows["label"].to_numpy(), Predictor.load(run).predict(rows)).auc


def measure(files: list[Path], out: Path, seeds: int, settings: dict[str, Any]) -> Answers:
    """All arms, block by block, seed by seed."""
    answers = Answers()
    for arm in ARMS:
        answers.auc[arm] = [[] for _ in range(seeds)]
    new, known = out / "new-0", out / "all-0"
    prepare(TableSource(files[:1], SCHEMA), new)
    for block in range(len(files) - 1):
        rows = pl.read_parquet(files[block + 1])
        if block:
            before, new = new, out / f"new-{block}"
            extending = timed(
                lambda before=before, new=new, block=block: prepare(
                    TableSource([files[block]], SCHEMA), new, extend=before
                )
            )
            known = out / f"all-{block}"
            preparing = timed(
                lambda known=known, block=block: prepare(
                    TableSource(files[: block + 1], SCHEMA), known
                )
            )
        for seed in range(seeds):
            training = {**settings["training"], "seed": seed}
            anew = with_preset(RECIPE, {**settings, "training": training})
            if not block:
                first = out / f"first-{seed}"
                trained({**anew, "data": str(new)}, first)
                continue
            for arm in ARMS:
                run = out / f"{arm}-{block}-{seed}"
                if arm == "left":
                    run = out / f"first-{seed}"
                elif arm == "retrained":
                    seconds = trained({**anew, "data": str(known)}, run)
                    answers.add_seconds(arm, preparing, seconds)
                else:
                    start = out / (f"{arm}-{block - 1}-{seed}" if block > 1 else f"first-{seed}")
                    change = {
                        **GOING_ON[arm],
                        "data": str(new),
                        "grow": {**GOING_ON[arm].get("grow", {}), "run": str(start)},
                    }
                    seconds = trained(with_grown(change, RECIPE), run)
                    answers.add_seconds(arm, extending, seconds)
                answers.auc[arm][seed].append(auc(run, rows))
        if block:
            shutil.rmtree(known)
            print(f"block {block}: {len(rows):,} rows scored", flush=True)
    return answers


def by_block(answers: Answers, arm: str) -> list[float]:
    """AUC of every block, the mean of all seeds."""
    return [sum(each) / len(each) for each in zip(*answers.auc[arm], strict=True)]


def share(seconds: dict[str, list[float]], arm: str) -> str:
    """Those of an arm, and their part of those of retraining."""
    if arm == "left":
        return ""
    mine, all_of_it = sum(seconds[arm]), sum(seconds["retrained"])
    return f"{mine:.0f} ({mine / all_of_it:.2f})"


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--since", type=int, default=2021, help="first year of rows")
    parser.add_argument("--until", type=int, default=2023, help="first year of blocks")
    parser.add_argument("--blocks", type=int, default=8, help="from then on")
    parser.add_argument("--months", type=int, default=3, help="of a block")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="dlrm")
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--every", type=int, default=1, help="use every so many-th row")
    parser.add_argument("--out", type=Path, default=Path("rolling"), help="folder for all of it")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    files = blocks_of(
        arguments.since,
        arguments.until,
        arguments.blocks,
        arguments.out / "rows",
        months=arguments.months,
        every=arguments.every,
    )
    settings = {
        "model": {"name": arguments.model, "dim": arguments.dim},
        "training": {"batch_size": arguments.batch_size, "threads": 1, "keep_state": True},
    }
    answers = measure(files, arguments.out, arguments.seeds, settings)
    base = by_block(answers, "retrained")
    table = []
    for arm in ARMS:
        mine = by_block(answers, arm)
        over_blocks = estimate([a - b for a, b in zip(mine, base, strict=True)])
        pairs = zip(answers.auc[arm], answers.auc["retrained"], strict=True)
        over_seeds = estimate([(sum(a) - sum(b)) / len(a) for a, b in pairs])
        table.append(
            (
                arm,
                f"{sum(mine) / len(mine):.4f}",
                "" if arm == "retrained" else over_blocks.signed(),
                "" if arm == "retrained" else over_seeds.signed(),
                *(share(kind, arm) for kind in (answers.seconds, answers.processor)),
            )
        )
    columns = (
        "arm", "AUC of the next block", "minus retrained (over blocks)", "(over seeds)",
        "seconds", "of the processor",
    )  # fmt: skip
    print(as_markdown(columns, table))
    found = {**asdict(answers), "settings": settings}
    write_json(arguments.json, {**environment(), **found})


if __name__ == "__main__":
    main()
