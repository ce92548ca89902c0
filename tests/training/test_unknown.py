"""What a category that training never saw is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.synthetic import SyntheticConfig, SyntheticSource
from mlet.export import load_collapsed
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.unknown import least_seen

MODELS: list[dict[str, Any]] = [
    {},
    {"inner_dim": 8, "table_bias": True},
    {"compression": {"name": "low_rank", "rank": 2}},
    {"inner_dim": 8, "table_dtype": "bfloat16"},
]


def run(data: Path, out: Path, **model: Any) -> Any:
    values = {"name": "deepfm", "dim": 4, "mlp": [8], **model}
    training = {"epochs": 2, "batch_size": 256, "threads": 1}
    train(RunConfig.parse({"data": str(data), "model": values, "training": training}, "t"), out)
    return load_collapsed(RunDirectory(out).model_file)[0]


@pytest.mark.parametrize("settings", MODELS)
def test_it_is_served_the_mean_of_the_least_seen(
    small_data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = run(small_data, tmp_path / "run", **settings)
    counts = PreparedDataset(small_data).training_counts
    exact = "table_dtype" not in settings  # rows of half precision are rounded
    for layer in (model.embedding, model.first_order.tables):
        for name, seen in counts.items():
            table = layer.table(name)
            expected = table[least_seen(seen)].mean(dim=0)
            torch.testing.assert_close(
                table[0], expected, atol=1e-6 if exact else 1e-2, rtol=1e-4 if exact else 1e-1
            )


def test_an_id_that_rare_categories_share_is_trained(
    small_config: SyntheticConfig, tmp_path: Path
) -> None:
    split = SplitRule(valid=0.15, test=0.25)
    prepare(SyntheticSource(small_config), tmp_path / "data", split=split, min_count=5)
    data = PreparedDataset(tmp_path / "data")
    shared = [f.name for f in data.schema.fields if data.vocabulary(f.name)["count"][0]]
    assert shared
    model = run(tmp_path / "data", tmp_path / "run")
    for name in shared:
        table = model.embedding.table(name)
        mean = table[least_seen(data.training_counts[name])].mean(dim=0)
        assert (table[0] - mean).abs().max() > 1e-3


@given(st.lists(st.integers(0, 50), max_size=300))
def test_the_least_seen(counts: list[int]) -> None:
    known = np.array(counts, dtype=np.int64)
    found = least_seen(known).numpy()
    seen = np.flatnonzero(known)
    assert len(found) >= min(len(seen), 10)
    assert len(found) >= 0.1 * len(seen) - 1
    others = np.setdiff1d(seen, found)
    if len(found):
        assert (known[found] > 0).all()
        limit = known[found].max()
        assert (known[others] > limit).all(), "all that were seen as little are among them"
        assert (known[found] < limit).sum() < max(10, 0.1 * len(seen) + 1)
