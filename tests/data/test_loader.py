"""Batches: every row once, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.data import Batch, BatchLoader, loader
from mlet.data.dataset import SplitColumns


def columns(rows: int) -> SplitColumns:
    """Every column of row i is made of i, so that a batch shows whether its columns match."""
    index = np.arange(rows)
    lengths = index % 3
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.repeat(index, lengths)
    return SplitColumns(
        labels={"label": (index % 2).astype(np.uint8)},
        dense=np.stack([index, -index], 1).astype(np.float32),
        ids=(index.astype(np.int32), (index * 7).astype(np.int32)),
        bags={"tags": (values.astype(np.int32), offsets)},
    )


def rows_of(batches: list[Batch]) -> list[int]:
    """The rows delivered, all columns checked to belong to them."""
    seen = []
    for batch in batches:
        index = batch.ids[:, 0]
        assert torch.equal(batch.ids[:, 1], index * 7)
        assert torch.equal(batch.labels["label"], (index % 2).float())
        assert torch.equal(batch.dense, torch.stack([index, -index], 1).float())
        values, offsets = batch.bags["tags"]
        assert torch.equal(offsets.diff(), index.long() % 3)
        assert torch.equal(values, index.repeat_interleave(index.long() % 3))
        seen += index.tolist()
    return seen


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_row_once_and_resumable_anywhere(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "_BLOCK_ROWS", data.draw(st.integers(1, 9)))
        patch.setattr(loader, "_BUFFER_BLOCKS", data.draw(st.integers(1, 4)))
        rows = data.draw(st.integers(1, 60))
        size = data.draw(st.integers(1, 20))
        seed = data.draw(st.none() | st.integers(0, 5))
        batches = BatchLoader(columns(rows), size, seed)
        whole = list(batches.epoch(3))
        assert len(whole) == len(batches)
        assert all(len(batch.dense) == size for batch in whole[:-1])
        seen = rows_of(whole)
        assert sorted(seen) == list(range(rows))
        if seed is None:
            assert seen == list(range(rows))
        start = data.draw(st.integers(0, len(whole)))
        assert rows_of(list(batches.epoch(3, start))) == seen[start * size :]


def test_order_differs_between_epochs_and_seeds_and_repeats() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return rows_of(list(BatchLoader(columns(500), 64, seed).epoch(epoch)))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1) != order(1, 0), "no two seeds share an epoch"
    displacement = np.abs(np.array(order(0, 0)) - np.arange(500)).mean()
    assert displacement > 100, "a full shuffle moves a row by a third of the rows on average"


def test_the_shuffle_reaches_beyond_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_BLOCK_ROWS", 8)
    monkeypatch.setattr(loader, "_BUFFER_BLOCKS", 4)
    seen = np.array(rows_of(list(BatchLoader(columns(800), 32, 0).epoch())))
    assert np.abs(seen - np.arange(800)).mean() > 160
