"""Dense features: scales learned of the training rows alone, and what is missing told apart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from logs_made import source, write_schema
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from mlet.data import DatasetSchema, PreparedDataset, SplitRule, prepare
from mlet.data.identity import check_data, fingerprint
from mlet.errors import ConfigError, RunError

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]
ROWS = 1_000
GENERATOR = np.random.default_rng(0)
#: Long-tailed, of both signs, with ties and with rows that lack it.
PRICE = [
    None if row % 10 == 3 else float(value)
    for row, value in enumerate(np.round(np.exp(GENERATOR.normal(size=ROWS) * 2), 1) - 2)
]
TRAIN = slice(0, 800)


def prepared(folder: Path, dense: dict[str, Any], price: list[float | None]) -> PreparedDataset:
    path = folder / "t.parquet"
    frame = {"click": [0, 1] * (len(price) // 2), "user": ["u"] * len(price)}
    pl.DataFrame({**frame, "price": price}).write_parquet(path)
    schema = {"label": "click", "categorical": ["user"], "dense": dense}
    out = folder / "d"
    prepare(source([path], schema), out, split=SplitRule(by="order"), overwrite=True)
    return PreparedDataset(out)


def column(data: PreparedDataset, place: int = 0) -> np.ndarray:
    splits = ("train", "valid", "test")
    return np.concatenate([data.split(name).dense[:, place] for name in splits])


def test_minus_one_zero_and_missing_are_three(tmp_path: Path) -> None:
    price = [-1.0, 0.0, None, 3.0] * 20
    as_before = column(prepared(tmp_path, {"price": "log"}, price))[:4]
    np.testing.assert_allclose(as_before, [0, 0, 0, np.log1p(3)], rtol=1e-6)
    dense = {"price": {"scale": "signed_log", "missing_indicator": True}}
    data = prepared(tmp_path, dense, price)
    expected = [-np.log(2), 0, 0, np.log(4)]
    np.testing.assert_allclose(column(data)[:4], expected, rtol=1e-6)
    assert column(data, 1)[:4].tolist() == [0, 0, 1, 0]
    assert [feature.name for feature in data.schema.dense] == ["price", "price is missing"]


@pytest.mark.parametrize("scale", ["standard", "quantile"])
def test_scales_are_those_of_scikit_learn_on_training_rows(tmp_path: Path, scale: str) -> None:
    found = column(prepared(tmp_path, {"price": scale}, PRICE))
    exact = np.array(PRICE, dtype=float).reshape(-1, 1)
    there = ~np.isnan(exact[:, 0])
    known = exact[TRAIN][there[TRAIN]]
    if scale == "standard":
        expected = StandardScaler().fit(known).transform(exact)[:, 0]
        assert abs(found[TRAIN][there[TRAIN]].std() - 1) < 1e-5
    else:
        peer = QuantileTransformer(n_quantiles=201, subsample=None).fit(known)
        expected = 2 * peer.transform(exact)[:, 0] - 1
        assert np.abs(found).max() <= 1
        # At both ends scikit-learn has the ends of the scale, however many rows are there.
        there &= ~np.isin(exact[:, 0], [known.min(), known.max()])
    # Training rows and those that were not fitted to.
    np.testing.assert_allclose(found[there], expected[there], atol=1e-5)
    assert (found[np.isnan(exact[:, 0])] == 0).all()


def test_other_rows_have_no_part_in_a_scale(tmp_path: Path) -> None:
    for scale in ("standard", "quantile"):
        before = column(prepared(tmp_path, {"price": scale}, PRICE))[TRAIN]
        later = [*PRICE[:800], *([1e6] * 200)]
        np.testing.assert_array_equal(
            column(prepared(tmp_path, {"price": scale}, later))[TRAIN], before
        )


@pytest.mark.parametrize("scale", ["standard", "quantile"])
@pytest.mark.parametrize("value", [5.0, None])
def test_a_feature_that_never_varies_is_nothing(
    tmp_path: Path, scale: str, value: float | None
) -> None:
    found = column(prepared(tmp_path, {"price": scale}, [value] * 100))
    assert (found == 0).all()


def test_what_was_learned_is_kept_and_belongs_to_the_weights(tmp_path: Path) -> None:
    data = prepared(tmp_path, {"price": "standard"}, PRICE)
    (feature,) = data.schema.dense
    known = [value for value in PRICE[TRAIN] if value is not None]
    assert feature.mean == pytest.approx(np.mean(known))
    assert feature.deviation == pytest.approx(np.std(known))
    other = prepared(tmp_path, {"price": "standard"}, [value and value + 1 for value in PRICE])
    with pytest.raises(RunError, match="its dense features, or their scaling, are others"):
        check_data(data.schema, other, Path("run"))


def test_what_was_prepared_before_reads_as_before(tmp_path: Path) -> None:
    data = prepared(tmp_path, {"price": "log"}, PRICE)
    written = json.loads((data.root / "schema.json").read_text())
    assert written["dense"] == [{"name": "price", "scale": "log", "missing_in_training": True}]
    values = data.schema.model_dump(mode="json")
    del values["dense"][0]["missing_in_training"]
    before = DatasetSchema.parse(values, "mlet 0.1").model_dump(mode="json")
    assert before["dense"] == [{"name": "price", "scale": "log"}], "nothing else, as mlet 0.1"
    assert fingerprint(data.schema) == fingerprint(PreparedDataset(data.root).schema)


def test_unknown_scales_and_colliding_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'dense\.price\.scale': Input should be 'log'"):
        prepared(tmp_path, {"price": "cube"}, PRICE)
    frame = {"click": [0, 1] * 20, "user": ["u"] * 40}
    frame |= {"price": [1.0] * 40, "price is missing": [1.0] * 40}
    pl.DataFrame(frame).write_parquet(tmp_path / "t.parquet")
    dense = {"price": {"missing_indicator": True}, "price is missing": "none"}
    schema = {"label": "click", "categorical": ["user"], "dense": dense}
    with pytest.raises(ConfigError, match="'price is missing' has the name of an indicator"):
        prepare(source([tmp_path / "t.parquet"], schema), tmp_path / "d")


def test_models_train_on_every_scale(tmp_path: Path, mlet: Mlet) -> None:
    scales = ("none", "log", "signed_log", "standard", "quantile")
    lines = ["click,user," + ",".join(scales)]
    for row in range(400):
        price = "" if row % 7 == 0 else str((row * row) % 31 - 9)
        lines.append(",".join([str(row * row % 3 % 2), f"u{row % 13}", *[price] * 5]))
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    dense = {scale: {"scale": scale, "missing_indicator": True} for scale in scales}
    write_schema(tmp_path / "s.yaml", {"label": "click", "categorical": ["user"], "dense": dense})
    mlet("prepare", "table", "t.csv", "--schema", "s.yaml", "--out", "d")
    mlet("train", "d", "--out", "run", "--dim", 2, "--set", "training.epochs=1")
    assert "AUC" in mlet("evaluate", "run", "--bootstrap", 10).stdout
