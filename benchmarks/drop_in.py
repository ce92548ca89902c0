"""What conversion costs in other people's models and trainers, with the fused optimizer or not.

Every case is measured in one interleaved run of its contenders: the plain model with its library's
own optimizer; converted, as conversion was at first (a projection for every lookup); converted,
with torch's optimizer; converted, with `mlet.optim.fused`. Peak memory is of a process of its own.

    python benchmarks/drop_in.py --json drop_in.json     # about a quarter of an hour
    python benchmarks/drop_in.py --cases two-tower       # those whose names contain this
    python benchmarks/drop_in.py --cases two-tower --device cuda
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import drop_in_models as models
import torch
from drop_in_models import Size, Step
from numba.core.registry import cpu_target
from rich.console import Console
from rich.progress import track
from rich.table import Table
from target import Target, print_targets
from timing import environment, interleave, write_json

from mlet.data.synthetic import CRITEO_CARDINALITIES

SMALL = Size(towers=500, cap=100, words=200, batch=1 / 64)


@dataclass(frozen=True)
class Case:
    """A model, its trainer and its data.

    Attributes:
        name: shown.
        step: of one contender; called with the size and the way.
        inputs: of one round each.
        ways: those there are.
        numbers: n, d and k of the tables that are converted, and how many numbers an optimizer
            keeps for each of theirs.
        targets: (name, contender, must, aim) of its time ÷ that of the plain model.
    """

    name: str
    step: Callable[[Size, str], Step]
    inputs: Callable[[Size, int], Iterator[Any]]
    ways: tuple[str, ...]
    numbers: Callable[[Size], tuple[list[int], int, int, int]]
    targets: tuple[tuple[str, str, float | None, float | None], ...]


def _towers(size: Size, states: int) -> tuple[list[int], int, int, int]:
    return [size.towers] * 2, 32, 64, states


def _fields(size: Size, states: int) -> tuple[list[int], int, int, int]:
    return [min(rows, size.cap) for rows in CRITEO_CARDINALITIES], 16, 64, states


def cases(device: str) -> list[Case]:
    """All of them; on a GPU those of which our own code does the work."""
    found = []
    for exponent, name in ((1.1, "Zipf"), (0.0, "uniform")):
        batches = functools.partial(models.two_tower_batches, exponent=exponent, device=device)
        for kind, states in (("dense_adam", 2), ("sgd", 0), ("adagrad", 1), ("sparse_adam", 2)):
            dense = kind == "dense_adam"
            asked = exponent > 0
            bounds = (0.5, 0.2) if dense else (1.0, 0.6)
            targets = [("converted + fused", "fused", *(bounds if asked else (None, None)))]
            if not dense:
                converted = (1.5, 1.0) if asked else (None, None)
                targets.append(("converted without fused", "converted", *converted))
            found.append(
                Case(
                    f"two-tower, {name}, {kind.replace('_', ' ')}",
                    functools.partial(models.two_tower, kind=kind, device=device),
                    batches,
                    ("plain", "fused") if dense else ("plain", "before", "converted", "fused"),
                    functools.partial(_towers, states=states),
                    tuple(targets),
                )
            )
    if device != "cpu":
        return found
    everything = ("plain", "before", "converted", "fused")
    fit = (("converted + fused, fit", "fused", 1.0, 0.5),)
    rest: list[tuple[str, Any, Any, Any, Any]] = [
        ("DeepCTR-Torch DeepFM", models.deepctr, models.click_batches, fit, 2),
        ("FuxiCTR DeepFM", models.fuxictr, models.click_batches, fit, 2),
        (
            "TorchRec DLRM",
            models.torchrec,
            models.torchrec_batches,
            (("converted + fused", "fused", 1.1, 0.8),),
            1,
        ),
    ]
    for name, step, inputs, targets, states in rest:
        numbers = functools.partial(_fields, states=states)
        ways = everything
        if step is models.torchrec:
            ways = (*everything, "fused, table by table")
        found.append(Case(name, step, inputs, ways, numbers, targets))
    for name, step, d, k in (
        ("small BERT", models.bert, 64, 256),
        ("SASRec-like", models.next_item, 32, 64),
    ):
        found.append(
            Case(
                name,
                step,
                models.word_batches,
                everything,
                lambda size, d=d, k=k: ([size.words], d, k, 2),  # type: ignore[misc]
                (("converted + fused", "fused", None, None),),
            )
        )
    return found


def quietly() -> None:
    """Without the warnings of libraries, and without torch's checks of sparse tensors."""
    warnings.simplefilter("ignore")
    torch.sparse.check_sparse_tensor_invariants.disable()


def alone(name: str, size: Size, way: str, threads: int) -> int:
    """Peak memory of a process that makes three rounds of one contender, in bytes."""
    quietly()
    torch.set_num_threads(threads)
    # Of libraries, which are no part of a table's price, Numba imports some, SciPy among them, when
    # it loads its first kernel: here, whether there will be one or not.
    cpu_target.target_context.refresh()
    (case,) = [case for case in cases("cpu") if case.name == name]
    step = case.step(size, way)
    for batch in case.inputs(size, 3):
        step(batch)
    # Not getrusage: its peak begins with that of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def peak(name: str, size: Size, way: str) -> int:
    context = get_context("forkserver")
    # What is imported is there before: libraries are no part of a table's price.
    context.set_forkserver_preload(["mlet.engine.cpu.backend", "mlet.training", "torch._dynamo"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(alone, name, size, way, torch.get_num_threads()).result()


def needed(case: Case, size: Size) -> int:
    """What the factors and their states take, in bytes."""
    rows, d, k, states = case.numbers(size)
    return 4 * sum((n + d) * k for n in rows) * (1 + states)


def measure(
    case: Case, size: Size, rounds: int, *, memory: bool
) -> tuple[list[dict[str, Any]], list[Target]]:
    """The rows of a case, and its targets."""
    contenders = {way: case.step(size, way) for way in case.ways}
    medians = interleave(contenders, case.inputs(size, rounds + 3))
    del contenders
    rows = [
        {"case": case.name, "way": way, "median_ms": median, "ratio": median / medians["plain"]}
        for way, median in medians.items()
    ]
    targets = [
        Target(f"{case.name}: {name} ÷ plain", medians[way] / medians["plain"], must, aim)
        for name, way, must, aim in case.targets
    ]
    if memory:
        peaks = {way: peak(case.name, size, way) for way in ("plain", "fused")}
        for row in rows:
            row["peak_bytes"] = peaks.get(row["way"])
        allowed = peaks["plain"] + needed(case, size)
        targets.append(
            Target(
                f"{case.name}: peak memory, fused ÷ (plain + (n + d) k numbers)",
                peaks["fused"] / allowed,
                1.15,
                1.05,
            )
        )
    return rows, targets


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="", help="those whose names contain this")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each contender")
    parser.add_argument("--device", default="cpu", help="as cuda; two-tower alone")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument(
        "--small", action="store_true", help="tiny tables and batches, to see whether it runs"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    quietly()
    size = SMALL if options.small else Size()
    chosen = [case for case in cases(options.device) if options.cases in case.name]
    if not chosen:
        parser.error(f"no case's name contains {options.cases!r}")
    rows, targets = [], []
    for case in track(chosen, "measuring", console=Console(stderr=True), transient=True):
        memory = not options.no_memory and options.device == "cpu"
        found = measure(case, size, options.rounds, memory=memory)
        rows += found[0]
        targets += found[1]
    table = Table(title=f"{size}, {torch.get_num_threads()} threads", title_justify="left")
    for column in ("case", "way", "median ms", "÷ plain", "peak memory"):
        table.add_column(column, justify="left" if column in ("case", "way") else "right")
    for row in rows:
        taken = row.get("peak_bytes")
        table.add_row(
            row["case"] if row["way"] == "plain" else "",
            row["way"],
            f"{row['median_ms']:.2f}",
            f"{row['ratio']:.2f}",
            f"{taken / 2**30:.2f} GiB" if taken else "",
        )
    Console().print(table)
    print_targets(targets, "What is asked")
    packages = ("deepctr-torch", "fuxictr", "torchrec", "transformers")
    kept = {"environment": environment(*packages), "rows": rows}
    write_json(options.json, {**kept, "targets": [target.as_row() for target in targets]})


if __name__ == "__main__":
    main()
