"""Labels, weights and true probabilities of every split, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data import layout
from mlet.data.column_file import ColumnFile
from mlet.data.schema import SPLITS, SplitName, SplitSchema
from mlet.data.source import LABEL, PROBABILITY, WEIGHT, RawColumns
from mlet.data.split import DividedChunk, Division
from mlet.data.workers import Workers, shares
from mlet.errors import DataError
from mlet.metrics import score


@dataclass(frozen=True)
class _Seen:
    """Rows of a split: clicks among all, and how many count at all, and clicks among those."""

    clicks: int
    counting: int
    counting_clicks: int


def write_labels(
    workers: Workers, division: Division, root: Path, columns: RawColumns
) -> dict[SplitName, SplitSchema]:
    """Write them; returns what each split is.

    Raises:
        DataError: AUC of a split cannot be had, as all its labels are one.
    """
    names: dict[str, tuple[Callable[[Path, SplitName], Path], npt.DTypeLike]]
    names = {LABEL: (layout.labels, np.uint8)}
    names |= {WEIGHT: (layout.weights, np.float32)} if columns.weight else {}
    names |= {PROBABILITY: (layout.probabilities, np.float64)} if columns.probability else {}
    files = {
        column: [
            ColumnFile(path(root, split), dtype, rows, short_header=True)
            for split, rows in zip(SPLITS, division.rows, strict=True)
        ]
        for column, (path, dtype) in names.items()
    }
    promises = [workers.submit(_write, some, files) for some in shares(workers, division.chunks)]
    seen = [one for promise in promises for one in promise()]
    return {
        name: _split_schema(
            root, name, division.rows[place], [each[place] for each in seen], columns
        )
        for place, name in enumerate(SPLITS)
    }


def _write(
    chunks: Sequence[DividedChunk], files: dict[str, list[ColumnFile]]
) -> list[tuple[_Seen, ...]]:
    """Write some rows; returns what is seen in each chunk of each split."""
    result = []
    for chunk in chunks:
        frame, splits = chunk.read(*files), chunk.of_splits()
        for column, outputs in files.items():
            values = frame[column].to_numpy()
            for output, (start, rows) in zip(outputs, splits, strict=True):
                output.write(start, values[rows])
        counts = _counts(frame)
        clicks = frame[LABEL].to_numpy()
        result.append(
            tuple(
                _Seen(
                    int(clicks[rows].sum()),
                    int((rows & counts).sum()),
                    int(clicks[rows & counts].sum()),
                )
                for _, rows in splits
            )
        )
    return result


def _counts(frame: pl.DataFrame) -> np.ndarray:
    """Which rows count for anything."""
    if WEIGHT not in frame.columns:
        return np.ones(len(frame), bool)
    return frame[WEIGHT].to_numpy().astype(np.float32) > 0


def _split_schema(
    root: Path, name: SplitName, rows: int, seen: Sequence[_Seen], columns: RawColumns
) -> SplitSchema:
    counting = sum(each.counting for each in seen)
    clicks = sum(each.counting_clicks for each in seen)
    if not counting:
        raise DataError(f"the {name} split has only weights of 0; weigh some of its rows")
    if name != "train" and clicks in (0, counting):
        raise DataError(
            f"the {name} split has only labels {int(clicks > 0)}, so AUC is undefined; "
            f"give it more rows or split at random"
        )
    weights = np.load(layout.weights(root, name), mmap_mode="r") if columns.weight else None
    bayes: dict[str, float] = {}
    if columns.probability:
        truth = np.load(layout.probabilities(root, name))
        best = score(np.load(layout.labels(root, name)), truth, weights)
        bayes = {"bayes_auc": best.auc, "bayes_logloss": best.logloss}
    return SplitSchema(
        rows=rows,
        click_rate=sum(each.clicks for each in seen) / rows,
        mean_weight=None if weights is None else float(weights.mean(dtype=np.float64)),
        **bayes,
    )
