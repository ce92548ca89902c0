"""Batches from memory-mapped columns: a seeded block shuffle, no Python per row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlet.data.dataset import SplitColumns
from mlet.metrics import taken
from mlet.nn import Bags

#: Rows read from each column in one piece.
_BLOCK_ROWS = 8_192
#: Blocks whose rows are mixed with one another in memory.
_BUFFER_BLOCKS = 64


class Labels(dict[str, Tensor]):
    """Labels by name; what mlet 0.1 called ``batch.labels`` is ``batch.labels["label"]``."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"labels go by name: batch.labels['label'] has {name!r}")


class Batch(NamedTuple):
    """B rows of click data.

    Attributes:
        labels: by name, (B,) float32; of click data ``label``, 0 or 1.
        dense: (B, D) float32.
        ids: (B, F₁) int32, one column for each one-valued field.
        bags: `Bags` of B bags for each multi-valued field.
        weights: (B,) float32, in units of the training rows' mean; None where all rows count alike.
    """

    labels: dict[str, Tensor]
    dense: Tensor
    ids: Tensor
    bags: dict[str, Bags]
    weights: Tensor | None = None

    def rows(self, part: slice) -> Batch:
        """Some of its rows, one after the other."""
        bags = {}
        for name, (values, offsets) in self.bags.items():
            window = offsets[part.start : part.stop + 1]
            bags[name] = Bags(values[int(window[0]) : int(window[-1])], window - window[0])
        return Batch(
            Labels({name: column[part] for name, column in self.labels.items()}),
            self.dense[part],
            self.ids[part],
            bags,
            None if self.weights is None else self.weights[part],
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            Labels({name: column.to(device) for name, column in self.labels.items()}),
            self.dense.to(device),
            self.ids.to(device),
            {name: Bags(*(part.to(device) for part in bag)) for name, bag in self.bags.items()},
            None if self.weights is None else self.weights.to(device),
        )


class _Rows(NamedTuple):
    """Rows gathered in memory, column by column."""

    labels: dict[str, npt.NDArray[np.float32]]
    dense: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    bags: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]
    weights: npt.NDArray[np.float32] | None

    def take(self, order: npt.NDArray[np.int64]) -> _Rows:
        """The rows in another order."""
        bags = {name: _take_bags(*bag, order) for name, bag in self.bags.items()}
        labels = {name: column[order] for name, column in self.labels.items()}
        return _Rows(labels, self.dense[order], self.ids[order], bags, taken(self.weights, order))

    def batch(self) -> Batch:
        """All of them, in the same memory."""
        return Batch(
            Labels({name: torch.from_numpy(column) for name, column in self.labels.items()}),
            torch.from_numpy(self.dense),
            torch.from_numpy(self.ids),
            {name: Bags(*map(torch.from_numpy, bag)) for name, bag in self.bags.items()},
            None if self.weights is None else torch.from_numpy(self.weights),
        )


def _take_bags(
    values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    lengths = np.diff(offsets)[order]
    moved = np.concatenate([[0], np.cumsum(lengths)])
    # Position of every value in the old array: its bag's old start plus its place in the bag.
    places = np.repeat(offsets[:-1][order] - moved[:-1], lengths) + np.arange(moved[-1])
    return values[places], moved


class BatchLoader:
    """Delivers a split in batches, in order or shuffled.

    The shuffle permutes blocks of rows, then the rows of a buffer of blocks (half a million rows):
    the disk sees long reads, and up to that size the shuffle is a full one. The order of epoch e
    depends on (seed, e) alone, so training can stop anywhere and continue with the same batches.

    Args:
        columns: the split.
        batch_size: rows of a batch, B; the last batch may be smaller.
        seed: of the shuffle; None delivers the rows in order.
    """

    def __init__(self, columns: SplitColumns, batch_size: int, seed: int | None = None) -> None:
        self.columns = columns
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.columns) // self.batch_size)

    def epoch(self, number: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number`` from batch ``start`` on."""
        blocks = np.arange(-(-len(self.columns) // _BLOCK_ROWS))
        generator = None
        if self.seed is not None:
            generator = np.random.default_rng([self.seed, number])
            generator.shuffle(blocks)
        # Batches straddle buffers: the rows left over are put before the next buffer's.
        skip = start * self.batch_size
        left: _Rows | None = None
        for first in range(0, len(blocks), _BUFFER_BLOCKS):
            chosen = blocks[first : first + _BUFFER_BLOCKS]
            rows = self._count(chosen)
            order = np.arange(rows) if generator is None else generator.permutation(rows)
            if skip >= rows:
                skip -= rows
                continue
            buffer = self._read(chosen).take(order[skip:])
            skip = 0
            buffer = buffer if left is None else _concatenate([left, buffer])
            last = first + _BUFFER_BLOCKS >= len(blocks)
            total = len(buffer.dense)
            whole = total if last else total - total % self.batch_size
            batch = buffer.batch()
            for at in range(0, whole, self.batch_size):
                yield batch.rows(slice(at, min(at + self.batch_size, whole)))
            left = None if whole == total else buffer.take(np.arange(whole, total))

    def _span(self, block: int) -> slice:
        return slice(block * _BLOCK_ROWS, min((block + 1) * _BLOCK_ROWS, len(self.columns)))

    def _count(self, blocks: npt.NDArray[np.int64]) -> int:
        spans = [self._span(int(block)) for block in blocks]
        return sum(span.stop - span.start for span in spans)

    def _read(self, blocks: npt.NDArray[np.int64]) -> _Rows:
        parts = []
        for block in blocks:
            span = self._span(int(block))
            rows = span.stop - span.start
            ids = np.empty((rows, len(self.columns.ids)), np.int32)
            for column, field in enumerate(self.columns.ids):
                ids[:, column] = field[span]
            bags = {}
            for name, (values, offsets) in self.columns.bags.items():
                window = np.asarray(offsets[span.start : span.stop + 1])
                bags[name] = (np.asarray(values[window[0] : window[-1]]), window - window[0])
            parts.append(
                _Rows(
                    {name: c[span].astype(np.float32) for name, c in self.columns.labels.items()},
                    np.asarray(self.columns.dense[span]),
                    ids,
                    bags,
                    self._weights(span),
                )
            )
        return _concatenate(parts)

    def _weights(self, span: slice) -> npt.NDArray[np.float32] | None:
        """In units of the training rows' mean."""
        weights = self.columns.weights
        if weights is None:
            return None
        return (weights[span].astype(np.float64) / self.columns.mean_weight).astype(np.float32)


def _concatenate(parts: list[_Rows]) -> _Rows:
    bags, weights = {}, [part.weights for part in parts]
    for name in parts[0].bags:
        lengths = np.concatenate([np.diff(part.bags[name][1]) for part in parts])
        values = np.concatenate([part.bags[name][0] for part in parts])
        bags[name] = (values, np.concatenate([[0], np.cumsum(lengths)]))
    return _Rows(
        {name: np.concatenate([part.labels[name] for part in parts]) for name in parts[0].labels},
        np.concatenate([part.dense for part in parts]),
        np.concatenate([part.ids for part in parts]),
        bags,
        None
        if weights[0] is None
        else np.concatenate([part for part in weights if part is not None]),
    )
