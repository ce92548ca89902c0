"""A model of rows with every kind of column, and the rows it is tested on as they were raw."""

from __future__ import annotations

import numpy as np
import pytest
from click_rows import SCHEMA, Trained, clicks, scores_of_evaluation

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import TableSchema, TableSource
from mlet.models import DLRMConfig
from mlet.training import RunConfig, train
from mlet.training.config import TrainingConfig


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("scoring")
    raw = clicks(4_000)
    raw.write_csv(folder / "clicks.csv")
    source = TableSource([folder / "clicks.csv"], TableSchema.parse(SCHEMA, "test"))
    rule = SplitRule(by="order", valid=0.1, test=0.25)
    prepare(source, folder / "data", split=rule, min_count=2)
    config = RunConfig(
        data=folder / "data",
        model=DLRMConfig(dim=4, inner_dim=12, bottom_mlp=[8], top_mlp=[8]),
        training=TrainingConfig(batch_size=64, epochs=1, threads=1),
    )
    train(config, folder / "run")
    rows = raw.tail(PreparedDataset(folder / "data").schema.splits["test"].rows)
    scores = scores_of_evaluation(folder / "run")
    assert len(np.unique(scores)) > 900, "rows are told apart"
    return Trained(folder / "run", folder / "data", rows, scores)
