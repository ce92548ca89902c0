"""Rows with every kind of column, and what they are scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.training.load import load_for_evaluation
from mlet.training.predict import served_scores

SCHEMA = {
    "label": "click",
    "dense": {"price": "none", "age": "log"},
    "categorical": ["user", "item"],
    "multi_valued": {"tags": "|"},
}


def clicks(rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows with rare categories, missing ages and categories, empty bags and a column besides."""
    draw = np.random.default_rng(seed)
    tags = [
        "|".join(draw.choice(list("abcdef"), size, replace=False))
        for size in draw.integers(0, 4, rows)
    ]
    return pl.DataFrame(
        {
            "request": np.arange(rows) + 1_000 * seed,
            "click": draw.integers(0, 2, rows),
            "price": draw.normal(size=rows).round(3),
            "age": [None if share < 0.1 else int(share * 70) for share in draw.random(rows)],
            "user": [None if one == 7 else f"u{one}" for one in draw.zipf(1.3, rows) % 400],
            "item": draw.zipf(1.4, rows) % 90,
            "tags": tags,
        }
    )


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        run, data: where it and its data set are.
        rows: the raw rows of the test split.
        scores: what ``mlet evaluate`` has for them.
    """

    run: Path
    data: Path
    rows: pl.DataFrame
    scores: npt.NDArray[np.float64]


def scores_of_evaluation(run: Path, data: Path | None = None) -> npt.NDArray[np.float64]:
    model, dataset = load_for_evaluation(run, data)
    return served_scores(model, dataset.split("test"))
