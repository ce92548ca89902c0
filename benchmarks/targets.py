"""The engine's targets: each ratio measured in an interleaved run, with pass or miss.

Takes about a quarter of an hour on two cores. Exits with 1 if a "must" is missed.

    python benchmarks/targets.py --json targets.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import drop_in
import embedding
import prepare
import torch
import training
from rich.console import Console
from rich.progress import track
from target import Target, print_targets
from timing import environment, interleave, write_json
from torch import Tensor

from mlet.nn import Field, FieldEmbedding

REFERENCE = embedding.Setting()


def embedding_step(rounds: int, reference: embedding.Setting) -> list[Target]:
    medians = embedding.measure(reference, rounds)
    ours = medians[embedding.OURS]
    return [
        Target("MLET embedding step ÷ stock SLT", ours / medians[embedding.STOCK], 0.8, 0.5),
        Target("MLET embedding step ÷ FBGEMM SLT", ours / medians[embedding.FBGEMM], 1.5, 1.0),
        Target("the authors' way ÷ ours", medians[embedding.AUTHORS] / ours, 3.0, 5.0, True),
    ]


def scaling(rounds: int, reference: embedding.Setting) -> list[Target]:
    """Ours against ours: larger batches, larger tables."""

    def step(setting: embedding.Setting) -> Callable[[Tensor], None]:
        fields = [
            Field(f"C{i}", size, setting.dim, setting.inner_dim)
            for i, size in enumerate(setting.sizes)
        ]
        return embedding.training_step(FieldEmbedding(fields), setting)

    settings = {
        "reference": reference,
        "batch": replace(reference, batch=4 * reference.batch),
        "cap": replace(reference, cap=10 * reference.cap),
    }
    steps = {name: step(setting) for name, setting in settings.items()}
    inputs = zip(*(embedding.id_batches(s, rounds + 3) for s in settings.values()), strict=True)
    keyed = (dict(zip(settings, ids, strict=True)) for ids in inputs)
    medians = interleave(
        {name: lambda ids, name=name: steps[name](ids[name]) for name in settings}, keyed
    )
    per_sample = {name: medians[name] / settings[name].batch for name in settings}
    return [
        Target(
            f"cost per sample, batch {settings['batch'].batch:,} ÷ {reference.batch:,}",
            per_sample["batch"] / per_sample["reference"],
            1.0,
            None,
        ),
        Target(
            f"cap {settings['cap'].cap:,} ÷ cap {reference.cap:,}",
            medians["cap"] / medians["reference"],
            1.3,
            1.1,
        ),
    ]


def training_step(rounds: int, reference: embedding.Setting) -> list[Target]:
    dlrm = training.measure(training.Task("dlrm", reference), rounds)
    deepfm = training.measure(training.Task("deepfm", reference), rounds)
    wide = training.measure(training.Task("deepfm-wide", reference), rounds)
    return [
        Target(
            "whole DLRM step, MLET ÷ our own SLT",
            dlrm[training.OURS] / dlrm[training.OURS_SLT],
            1.10,
            1.03,
        ),
        Target(
            "samples per second, our MLET ÷ FuxiCTR SLT, DeepFM as wide as FuxiCTR's default",
            deepfm[training.FUXICTR] / deepfm[training.OURS],
            4.0,
            8.0,
            True,
        ),
        Target(
            "the same, DeepFM as wide as in its paper (3 × 400)",
            wide[training.FUXICTR] / wide[training.OURS],
            None,
            None,
            True,
        ),
    ]


def preparation(rows: int) -> list[Target]:
    speeds = prepare.measure(rows, 1)
    return [
        Target(
            f"mlet prepare ÷ FuxiCTR preprocessing, rows per second, {rows:,} rows",
            speeds["mlet"] / speeds["FuxiCTR"],
            3.0,
            10.0,
            True,
        )
    ]


def conversion(rounds: int, small: bool) -> list[Target]:
    """Other people's models and trainers, converted."""
    size = drop_in.SMALL if small else drop_in.Size()
    targets: list[Target] = []
    for case in drop_in.cases("cpu"):
        targets += drop_in.measure(case, size, rounds, memory=not small)[1]
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="timed steps of each contender")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to prepare")
    parser.add_argument(
        "--small", action="store_true", help="tiny tables and batches, to see whether it runs"
    )
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.sparse.check_sparse_tensor_invariants.disable()
    reference = embedding.Setting(batch=64, cap=500) if options.small else REFERENCE
    parts: list[Callable[[], list[Target]]] = [
        lambda: embedding_step(options.rounds, reference),
        lambda: training_step(max(options.rounds // 2, 2), reference),
        lambda: scaling(options.rounds, reference),
        lambda: preparation(options.rows),
        lambda: conversion(max(options.rounds // 4, 2), options.small),
    ]
    targets = [
        target
        for part in track(parts, "measuring", console=Console(stderr=True), transient=True)
        for target in part()
    ]
    print_targets(targets, f"{reference}, {torch.get_num_threads()} threads")
    write_json(options.json, [target.as_row() for target in targets])
    print(environment("fbgemm_gpu-cpu", "fuxictr", "polars"), file=sys.stderr)
    sys.exit(not all(target.meets(target.must) for target in targets))


if __name__ == "__main__":
    main()
