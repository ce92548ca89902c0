"""Preparation: splits, vocabularies from training rows alone, columns that say what was read."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import MovieLensSource
from mlet.data.schema import SPLITS
from mlet.data.source import LABEL, TIME, RawColumns, dense_column, field_column
from mlet.data.vocabulary import digest_categories
from mlet.errors import ConfigError, DataError, RunError


class Rows:
    """A source of given rows, in frames of a few rows each."""

    description = "rows of the test"

    def __init__(self, frame: pl.DataFrame, columns: RawColumns, size: int = 1_000) -> None:
        self.frame, self.columns, self.size = frame, columns, size
        self.default_split: Literal["time", "random"] = "time" if columns.time else "random"

    def frames(self) -> Iterator[pl.DataFrame]:
        yield from self.frame.iter_slices(self.size)


def make_rows(count: int, seed: int = 0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    bags = [
        [f"t{i}" for i in generator.integers(6, size=generator.integers(4))] for _ in range(count)
    ]
    users = [f"u{i}" if i else None for i in generator.integers(9, size=count)]
    return pl.DataFrame(
        {
            LABEL: pl.Series(np.arange(count) % 2, dtype=pl.UInt8),
            TIME: pl.Series(generator.integers(20, size=count), dtype=pl.Int64),
            dense_column("x"): [None if i % 5 == 0 else float(i - 7) for i in range(count)],
            dense_column("y"): np.arange(count, dtype=np.float64),
            field_column("user"): users,
            field_column("tags"): pl.Series(bags, dtype=pl.List(pl.String)),
        }
    )


COLUMNS = RawColumns({"x": "log", "y": "none"}, ("user",), ("tags",), time=True)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_columns_decode_to_the_rows_that_were_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    frame = make_rows(data.draw(st.integers(40, 90)), data.draw(st.integers(0, 99)))
    by = data.draw(st.sampled_from(["time", "order", "random"]))
    min_count = data.draw(st.integers(1, 6))
    out = tmp_path_factory.mktemp("data") / "d"
    source = Rows(frame, COLUMNS, size=data.draw(st.integers(3, 90)))
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["mlet.data.staging"]
        patch.setattr(module, "_CHUNK_ROWS", data.draw(st.integers(1, 90)))
        schema = prepare(source, out, split=SplitRule(by, 0.2, 0.25), min_count=min_count)
    dataset = PreparedDataset(out)
    assert dataset.schema == schema

    count = len(frame)
    test, valid = round(count * 0.25), round(count * 0.2)
    order = {
        "time": np.argsort(frame[TIME].to_numpy(), kind="stable"),
        "order": np.arange(count),
        "random": np.random.default_rng(0).permutation(count),
    }[by]
    parts = np.split(order, [count - test - valid, count - test])
    members = {name: np.sort(rows) for name, rows in zip(SPLITS, parts, strict=True)}
    train = frame[members["train"]]

    users = Counter(train[field_column("user")].fill_null("").to_list())
    known = {user for user, number in users.items() if number >= min_count}
    vocabulary = dataset.vocabulary("user")
    assert set(vocabulary["category"][1:]) == known
    assert vocabulary["count"][0] == sum(users.values()) - sum(users[user] for user in known)
    assert dict(vocabulary.rows()[1:]) == {user: users[user] for user in known}
    assert vocabulary["count"][1:].is_sorted(descending=True)

    for name in SPLITS:
        part, columns = frame[members[name]], dataset.split(name)
        assert columns.labels["label"].tolist() == part[LABEL].to_list()
        words = vocabulary["category"].to_list()
        decoded = [words[i] for i in columns.ids[0]]
        given_ = part[field_column("user")].fill_null("").to_list()
        assert decoded == [user if user in known else None for user in given_]
        x = part[dense_column("x")].fill_null(0).to_numpy()
        expected = np.stack([np.log1p(np.maximum(x, 0)), part[dense_column("y")].to_numpy()], 1)
        np.testing.assert_allclose(columns.dense, expected, rtol=1e-6)
        tags = dataset.vocabulary("tags")["category"].to_list()
        values, offsets = columns.bags["tags"]
        bags = [[tags[i] for i in values[a:b]] for a, b in pairwise(offsets)]
        read = part[field_column("tags")].to_list()
        assert bags == [[tag if tag in tags else None for tag in bag] for bag in read]


def test_each_field_may_have_its_own_minimum_count(tmp_path: Path) -> None:
    source = Rows(make_rows(200), COLUMNS)
    schema = prepare(source, tmp_path / "d", min_count=3, field_min_counts={"user": 15})
    assert {field.name: field.min_count for field in schema.fields} == {"user": 15, "tags": 3}
    dataset = PreparedDataset(tmp_path / "d")
    assert dataset.vocabulary("user")["count"][1:].min() >= 15
    assert dataset.vocabulary("tags")["count"][1:].min() >= 3
    assert len(dataset.vocabulary("user")) < schema.fields[0].total_categories + 1
    prepare(source, tmp_path / "tags", field_min_counts={"tags": 35})
    tags = PreparedDataset(tmp_path / "tags").vocabulary("tags")["count"][1:]
    assert 0 < len(tags) < 6
    assert tags.min() >= 35


def test_a_random_split_is_that_of_its_seed(tmp_path: Path) -> None:
    def rows(name: str, seed: int) -> list[float]:
        source = Rows(make_rows(200), COLUMNS)
        prepare(source, tmp_path / name, split=SplitRule(by="random", seed=seed))
        data = PreparedDataset(tmp_path / name)
        # ``y`` is the number of the row.
        splits = [np.asarray(data.split(split).dense)[:, 1] for split in SPLITS]
        assert sorted(np.concatenate(splits).tolist()) == list(range(200))
        return splits[2].tolist()

    first = rows("a", 3)
    assert rows("b", 3) == first
    other = rows("c", 4)
    assert other != first
    assert sorted(other) != sorted(first), "not the same rows in another order"


def test_rarest_counts(tmp_path: Path) -> None:
    frame = make_rows(200)
    prepare(Rows(frame, COLUMNS), tmp_path / "d", min_count=12)
    dataset = PreparedDataset(tmp_path / "d")
    counts = {name: dataset.vocabulary(name)["count"].to_list() for name in ("user", "tags")}
    columns = dataset.split("test")
    values, offsets = columns.bags["tags"]
    for row, (rarest, by_user) in enumerate(
        zip(dataset.rarest_counts("test"), dataset.rarest_counts("test", "user"), strict=True)
    ):
        user = columns.ids[0][row]
        expected = counts["user"][user] if user else 0
        assert by_user == expected
        bag = [counts["tags"][i] if i else 0 for i in values[offsets[row] : offsets[row + 1]]]
        assert rarest == min([expected, *bag])
    with pytest.raises(DataError, match="no field 'film'; the fields are user, tags"):
        dataset.rarest_counts("test", "film")


def test_movielens_split_is_chronological_and_learns_nothing_from_later_rows(
    movielens: Path, tmp_path: Path
) -> None:
    source = MovieLensSource(movielens)
    schema = prepare(source, tmp_path / "ml")
    assert schema.split_by == "time"
    raw = pl.concat(list(source.frames())).sort(TIME, maintain_order=True)
    train = raw.head(schema.splits["train"].rows)
    dataset = PreparedDataset(tmp_path / "ml")
    for field in ("user", "film", "year", "hour", "weekday"):
        known = set(dataset.vocabulary(field)["category"][1:])
        assert known == set(train[field_column(field)].fill_null(""))
    assert set(dataset.vocabulary("genres")["category"][1:]) == set(
        train[field_column("genres")].explode(empty_as_null=False)
    )
    assert schema.splits["test"].click_rate == pytest.approx(raw.tail(10_000)[LABEL].mean())


def test_nothing_is_left_of_a_failed_preparation(tmp_path: Path) -> None:
    frame = make_rows(100).with_columns(pl.lit(1e300).alias(dense_column("y")))
    with pytest.raises(DataError, match="dense feature 'y' has values too large"):
        prepare(Rows(frame, COLUMNS), tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_overwrite_keeps_the_old_data_set_until_the_new_one_is_whole(tmp_path: Path) -> None:
    good = Rows(make_rows(100), COLUMNS)
    schema = prepare(good, tmp_path / "d")
    with pytest.raises(RunError, match="already exists: pass --overwrite"):
        prepare(good, tmp_path / "d")
    with pytest.raises(DataError):
        prepare(Rows(make_rows(2), COLUMNS), tmp_path / "d", overwrite=True)
    assert PreparedDataset(tmp_path / "d").schema == schema
    longer = prepare(Rows(make_rows(120), COLUMNS), tmp_path / "d", overwrite=True)
    assert PreparedDataset(tmp_path / "d").schema == longer
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_errors(tmp_path: Path) -> None:
    frame = make_rows(100)
    source = Rows(frame, COLUMNS)
    out = tmp_path / "d"
    with pytest.raises(DataError, match="split would be empty"):
        prepare(Rows(frame.head(3), COLUMNS), out)
    ones = frame.with_columns(pl.lit(1, pl.UInt8).alias(LABEL))
    with pytest.raises(DataError, match="the valid split has only labels 1"):
        prepare(Rows(ones, COLUMNS), out)
    with pytest.raises(DataError, match="no rows"):
        prepare(Rows(frame.clear(), COLUMNS), out)
    with pytest.raises(ConfigError, match="min_count of field 'user' must be at least 1, got 0"):
        prepare(source, out, min_count=0)
    with pytest.raises(ConfigError, match="min_count for 'film': no such field; the fields are us"):
        prepare(source, out, field_min_counts={"film": 2})
    with pytest.raises(ConfigError, match="together below 1"):
        SplitRule(valid=0.5, test=0.5)
    for shares in ({"valid": 0.0}, {"test": 0.0}, {"valid": -0.1}):
        with pytest.raises(ConfigError, match="must be above 0"):
            SplitRule(**shares)
    without_time = RawColumns(COLUMNS.dense, COLUMNS.categorical, COLUMNS.multi_valued)
    with pytest.raises(ConfigError, match="cannot split by 'time'"):
        prepare(Rows(frame, without_time), out, split=SplitRule("time"))


def test_opening_what_is_no_data_set_or_damaged(
    tmp_path: Path, rewrite: Callable[[Path, str, np.ndarray], None]
) -> None:
    with pytest.raises(DataError, match="not a prepared data set"):
        PreparedDataset(tmp_path)
    prepare(Rows(make_rows(100), COLUMNS), tmp_path / "d")
    column = tmp_path / "d" / "test" / "fields" / "user.npy"
    column.write_bytes(column.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"user\.npy: damaged"):
        PreparedDataset(tmp_path / "d").split("test")
    rewrite(tmp_path / "d", "test/fields/user.npy", np.zeros(3, np.int32))
    with pytest.raises(DataError, match="where the schema says"):
        PreparedDataset(tmp_path / "d").split("test")
    column.unlink()
    with pytest.raises(DataError, match=r"user\.npy: missing"):
        PreparedDataset(tmp_path / "d").split("test")
    vocabulary = tmp_path / "d" / "vocabularies" / "user.parquet"
    content = bytearray(vocabulary.read_bytes())
    content[len(content) // 2] ^= 1
    vocabulary.write_bytes(content)
    with pytest.raises(DataError, match=r"user\.parquet: damaged"):
        PreparedDataset(tmp_path / "d").training_counts  # noqa: B018
    schema = tmp_path / "d" / "schema.json"
    schema.write_text(schema.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(DataError, match="format version 9"):
        PreparedDataset(tmp_path / "d")


def test_no_two_vocabularies_have_one_digest() -> None:
    lists = [["a:b"], ["a", "b"], ["b", "a"], ["a", ":b"], ["a:", "b"], ["ab"], ["1:a"], []]
    tables = [pl.DataFrame({"category": ["", *words]}) for words in lists]
    assert len({digest_categories(table) for table in tables}) == len(lists)
    counted = tables[1].with_columns(pl.Series("count", [5, 6, 7]))
    assert digest_categories(counted) == digest_categories(tables[1]), "counts are no part of it"


def test_nothing_but_the_data_set_is_left(tmp_path: Path) -> None:
    prepare(Rows(make_rows(60), COLUMNS), tmp_path / "d")
    assert {path.name for path in (tmp_path / "d").iterdir()} == {
        "schema.json", "vocabularies", *SPLITS
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
