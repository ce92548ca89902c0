"""How sparse a data set is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.properties import properties, zipf_exponent
from mlet.data.synthetic import SyntheticConfig, SyntheticSource


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_the_exponent_of_a_zipf_law(exponent: float) -> None:
    exact = np.round(1e6 * np.arange(1.0, 2_001) ** -exponent).astype(np.int64)
    assert zipf_exponent(exact) == pytest.approx(exponent, abs=0.02)
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(generator.poisson(exact))
    assert zipf_exponent(shuffled) == pytest.approx(exponent, abs=0.05)
    assert math.isnan(zipf_exponent(np.array([5, 1, 1, 1])))


def test_the_generator_has_the_exponent_that_it_was_given(tmp_path: Path) -> None:
    config = SyntheticConfig(rows=60_000, cardinalities=[2_000, 300], zipf=1.2, dense=1)
    prepare(SyntheticSource(config), tmp_path / "d", split=SplitRule(valid=0.1, test=0.2))
    for field in properties(PreparedDataset(tmp_path / "d")).fields:
        assert field.zipf == pytest.approx(1.2, abs=0.1)


def test_shares_are_counted_over_test_values(tmp_path: Path, mlet: Any) -> None:
    # Training: a 12 times, b 3 times, c once. Test: a, b, c, and d and e, which are new.
    training = ["a"] * 12 + ["b"] * 3 + ["c"]
    test = ["a", "b", "c", "d", "e"]
    kinds = ["one"] * 16 + ["one"] * 5
    parts = ["train"] * 16 + ["test"] * 5
    rows = pl.DataFrame({"user": training + test, "kind": kinds, "part": parts})
    rows = rows.with_columns(click=pl.int_range(pl.len()) % 2)
    valid = rows.filter(pl.col("part") == "test").with_columns(part=pl.lit("valid"))
    pl.concat([rows, valid]).write_csv(tmp_path / "rows.csv")
    (tmp_path / "schema.yaml").write_text(
        "label: click\ncategorical: [user, kind]\nsplit: {column: part}\n"
    )
    mlet("prepare", "table", "rows.csv", "--schema", "schema.yaml", "--out", "data")
    printed = mlet("describe", "data", "--json", "-").stdout
    found = json.loads(printed)
    assert found["rows"] == 16
    assert found["rows_per_category"] == 4
    assert found["rare_rows"] == 0.8
    assert found["unseen_rows"] == 0.4
    user, kind = found["fields"]
    assert (user["categories"], user["once"]) == (3, pytest.approx(1 / 3))
    assert (user["rare"], user["unseen"], user["zipf"]) == (0.8, 0.4, None)
    assert (kind["categories"], kind["rare"], kind["unseen"]) == (1, 0, 0)
    assert found["inner_dims"]["kind"]["reason"] == "n = 2 is small"


def test_it_is_told_in_a_table(small_data: Path, mlet: Any, tmp_path: Path) -> None:
    said = mlet("describe", small_data, "--dim", 32, "--json", "found.json").stdout
    assert "ordinary: d = 32 is wide already" in said
    assert "training rows" in said
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == 1_800
