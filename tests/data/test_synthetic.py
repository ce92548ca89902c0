"""The click generator: its laws, its truth, its repeatability."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import logit

from mlet.data import PreparedDataset
from mlet.data.readers import CriteoSource
from mlet.data.readers.criteo import write_criteo_tsv
from mlet.data.source import LABEL, PROBABILITY, dense_column, field_column
from mlet.data.synthetic import SyntheticConfig, SyntheticSource, preset, source
from mlet.data.synthetic.features import FeatureLaw
from mlet.data.synthetic.truth import Truth
from mlet.errors import ConfigError


def frame(**changes: object) -> pl.DataFrame:
    config = SyntheticConfig(**{"rows": 60_000, "cardinalities": [200, 20, 5], **changes})
    return pl.concat(list(SyntheticSource(config).frames()))


def test_labels_follow_the_stated_probabilities() -> None:
    rows = frame()
    probability, clicks = rows[PROBABILITY].to_numpy(), rows[LABEL].to_numpy()
    assert probability.mean() == pytest.approx(0.25, abs=0.01)
    assert logit(probability).std() == pytest.approx(2.0, rel=0.05)
    for low in np.arange(0, 1, 0.2):
        inside = (probability >= low) & (probability < low + 0.2)
        deviation = clicks[inside].mean() - probability[inside].mean()
        assert abs(deviation) < 4 * 0.5 / np.sqrt(inside.sum())


def test_categories_follow_zipf() -> None:
    counts = frame(zipf=1.2)[field_column("C1")].value_counts()["count"].sort(descending=True)
    shares = counts.to_numpy() / 60_000
    law = np.arange(1, 201.0) ** -1.2
    np.testing.assert_allclose(shares[:10], (law / law.sum())[:10], rtol=0.1)


def truth(**changes: object) -> Truth:
    config = SyntheticConfig(**{"cardinalities": [20_000, 20_000], "clusters": 3, **changes})
    pilot = FeatureLaw(config).draw(np.random.default_rng(1), 1000)
    return Truth(config, np.random.default_rng(0), pilot)


def test_latent_vectors_have_the_stated_cluster_structure() -> None:
    law, ranks = truth(noise=0.25), np.arange(20_000)
    vectors = law._latent(0, ranks)
    centres = law._centres[0] * np.sqrt(0.75)
    distances = np.linalg.norm(vectors[:, None] - centres, axis=2).min(axis=1)
    # the noise part is √ν times a standard normal vector: E‖·‖² = ν r
    assert (distances**2).mean() == pytest.approx(0.25 * 4, rel=0.1)
    assert np.array_equal(law._latent(0, np.array([5, 5, 9])), vectors[[5, 5, 9]])


def test_a_category_s_own_part_is_its_field_s_and_its_seed_s() -> None:
    ranks = np.arange(20_000)
    own = truth(noise=1.0)._latent(0, ranks).ravel()
    for other in (truth(noise=1.0)._latent(1, ranks), truth(noise=1.0, seed=7)._latent(0, ranks)):
        assert abs(np.corrcoef(own, other.ravel())[0, 1]) < 0.02


def test_rows_come_in_blocks_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_BLOCK_ROWS", 200)
    config = SyntheticConfig(rows=500, cardinalities=[200, 20, 5])
    first, second, last = SyntheticSource(config).frames()
    assert (len(first), len(second), len(last)) == (200, 200, 100)
    assert not first.equals(second)


def test_same_config_same_rows_other_seed_other_rows() -> None:
    assert frame(rows=500).equals(frame(rows=500))
    assert not frame(rows=500).equals(frame(rows=500, seed=1))


def test_bayes_scores_are_those_of_the_truth(small_data: Path) -> None:
    data = PreparedDataset(small_data)
    for name, split in data.schema.splits.items():
        truth = np.load(small_data / name / "probability.npy")
        labels = np.asarray(data.split(name).labels["label"], np.float64)
        loss = -(labels * np.log(truth) + (1 - labels) * np.log1p(-truth)).mean()
        assert split.bayes_logloss == pytest.approx(loss)
        clicks, others = truth[labels == 1], truth[labels == 0]
        wins = (clicks[:, None] > others).mean() + (clicks[:, None] == others).mean() / 2
        assert split.bayes_auc == pytest.approx(wins)


def test_names_are_unique_within_a_field() -> None:
    for place in range(3):
        assert source._names(np.arange(100_000), place).n_unique() == 100_000


def test_criteo_preset_round_trips_through_the_reader(tmp_path: Path) -> None:
    generated = SyntheticSource(preset("criteo", rows=400))
    path, written = tmp_path / "train.txt", []
    write_criteo_tsv(generated, path, written.append)
    assert written == [400]
    read = pl.concat(list(CriteoSource([path]).frames()))
    made = pl.concat(list(generated.frames()))
    assert made.drop(PROBABILITY).equals(read.select(made.drop(PROBABILITY).columns))
    assert read[dense_column("I1")].null_count() > 0
    with pytest.raises(ConfigError, match="use preset criteo"):
        write_criteo_tsv(SyntheticSource(SyntheticConfig()), path, lambda done: None)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'row'; did you mean 'rows'"):
        preset("default", row=5)
    with pytest.raises(ConfigError, match="'click_rate'"):
        preset("default", click_rate=1.5)
    with pytest.raises(ConfigError, match="every cardinality"):
        preset("default", cardinalities=[10, 0])
