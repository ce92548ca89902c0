"""Data sets that extend others: ids stay, counts add up, what changed is said."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.data import PreparedDataset, SplitRule, layout, prepare
from mlet.data.identity import check_data, check_extension
from mlet.data.properties import properties
from mlet.data.readers import TableSchema, TableSource
from mlet.data.readers.registry import open_raw
from mlet.data.vocabulary import KnownCategories, Vocabulary, VocabularyBuilder
from mlet.errors import ConfigError, DataError, RunError
from mlet.reading import read_sealed, write_sealed

SCHEMA: dict[str, Any] = {
    "label": "click",
    "dense": {"price": "standard", "age": "quantile"},
    "categorical": ["user", "item"],
    "multi_valued": {"tags": "|"},
}


def write_rows(path: Path, users: range, seed: int, rows: int = 400, missing: bool = False) -> None:
    draw = random.Random(seed)
    lines = ["click,price,age,user,item,tags"]
    for row in range(rows):
        price = "" if missing and row % 9 == 0 else f"{draw.gauss(5 + seed, 2):.3f}"
        tags = "|".join(f"t{draw.randrange(users.stop)}" for _ in range(draw.randrange(3)))
        user, item = draw.choice(users), draw.randrange(9)
        lines.append(f"{row % 2},{price},{draw.randrange(80)},u{user},i{item},{tags}")
    path.write_text("\n".join(lines) + "\n")


def source(path: Path, **changes: Any) -> TableSource:
    return TableSource([path], TableSchema.model_validate({**SCHEMA, **changes}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of three times, and the data set of the first."""
    root = tmp_path_factory.mktemp("extension")
    for place, users in enumerate((range(200), range(100, 300), range(290, 310))):
        write_rows(root / f"{place}.csv", users, place, missing=place == 1)
    prepare(
        source(root / "0.csv"),
        root / "first",
        split=SplitRule("order"),
        min_count=3,
        field_min_counts={"item": 1},
    )
    return root


Texts = st.lists(st.sampled_from("abcdefgh"), max_size=30)


@settings(max_examples=40, deadline=None)
@given(st.lists(Texts, min_size=2, max_size=4), st.integers(1, 4))
def test_counts_go_on_and_ids_stay(parts: list[list[str]], least: int) -> None:
    known: KnownCategories | None = None
    counts: Counter[str] = Counter()
    ids: list[str] = []
    for part in parts:
        builder = VocabularyBuilder()
        builder.add(pl.Series(part, dtype=pl.String))
        found = builder.build(least, known)
        counts.update(part)
        # Those that had an id, and then those that cross the threshold, the most frequent first.
        new = [name for name, count in counts.items() if count >= least and name not in ids]
        ids += sorted(new, key=lambda name: (-counts[name], name))
        assert found.table["category"].to_list() == [None, *ids]
        assert found.table["count"].to_list()[1:] == [counts[name] for name in ids]
        rare = {name: count for name, count in counts.items() if name not in ids}
        assert dict(found.rare.iter_rows()) == rare
        assert found.table["count"][0] == sum(rare.values())
        assert found.total_categories == len(counts)
        known = KnownCategories(found.table, found.rare, found.total_categories)


def test_an_extension_of_an_extension(folder: Path, tmp_path: Path) -> None:
    before = folder / "first"
    for place in (1, 2):
        new = tmp_path / f"{place}"
        prepare(source(folder / f"{place}.csv"), new, extend=before, split=SplitRule("order"))
        before = new
    first, third = (PreparedDataset(path) for path in (folder / "first", before))
    assert third.schema.splits["train"].rows == 320, "the new rows alone"
    assert third.schema.counted_rows == properties(third).rows == 3 * 320
    assert third.schema.extends is not None
    for field in third.schema.fields:
        earlier, later = (data.vocabulary(field.name) for data in (first, third))
        assert later["category"].head(len(earlier)).equals(earlier["category"])
        assert field.min_count == (1 if field.name == "item" else 3)
    assert len(third.vocabulary("user")) > len(first.vocabulary("user"))
    # The rows are encoded by it: what each was, from its file.
    rows = pl.read_csv(folder / "2.csv")
    names = third.vocabulary("user")["category"]
    users = names.gather(third.split("train").ids[0]).to_list()
    expected = [u if u in set(names[1:]) else None for u in rows["user"].head(320)]
    assert users == expected
    # Whoever was too rare in each part alone, but not in all of them, has an id.
    counts: Counter[str] = Counter()
    for place in range(3):
        counts.update(pl.read_csv(folder / f"{place}.csv")["user"].head(320))
    known = dict(third.vocabulary("user").slice(1).iter_rows())
    assert known == {user: count for user, count in counts.items() if count >= 3}
    assert dict(third.rare("user").iter_rows()) == counts - Counter(known)


def test_dense_features_stay_scaled_as_they_were(folder: Path, tmp_path: Path) -> None:
    schema = prepare(source(folder / "1.csv"), tmp_path / "new", extend=folder / "first")
    first = PreparedDataset(folder / "first").schema
    for one, other in zip(first.dense, schema.dense, strict=True):
        assert (one.mean, one.deviation, one.quantiles) == (
            other.mean,
            other.deviation,
            other.quantiles,
        )
    assert [entry.missing_in_training for entry in first.dense] == [False, False]
    assert [entry.missing_in_training for entry in schema.dense] == [True, False]
    price = PreparedDataset(tmp_path / "new").split("train").dense[:, 0]
    assert 0.2 < float(np.mean(price)) < 0.8, "half a deviation above those before"


def test_it_is_known_whether_one_extends_another(folder: Path, tmp_path: Path) -> None:
    first = PreparedDataset(folder / "first")
    prepare(source(folder / "1.csv"), tmp_path / "new", extend=folder / "first")
    prepare(source(folder / "1.csv"), tmp_path / "other", min_count=3)
    new, other = (PreparedDataset(tmp_path / name) for name in ("new", "other"))
    run = Path("run")
    check_extension(first.schema, new, run)
    check_extension(first.schema, first, run)
    with pytest.raises(RunError, match=r"'user' has \d+ categories.*it extends that one: go on"):
        check_data(first.schema, new, run)
    with pytest.raises(RunError, match=r"other does not extend the data set of run: .*'user'"):
        check_extension(first.schema, other, run)
    with pytest.raises(RunError, match=r"first does not extend the data set of run"):
        check_extension(new.schema, first, run)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"categorical": ["user"]}, "the field 'item' is missing; make it"),
        ({"categorical": ["user", "item", "age"], "dense": {"price": "standard"}}, "'age' is new"),
        ({"dense": {"price": "standard"}}, "the dense feature 'age' is missing"),
        ({"dense": {"price": "log", "age": "quantile"}}, "'price' was scaled by 'standard', not"),
        (
            {
                "dense": {
                    "price": {"scale": "standard", "missing_indicator": True},
                    "age": "quantile",
                }
            },
            "the missing indicator of 'price' is new",
        ),
        ({"positive": [1]}, r"'positive' was None in its schema, it is \[1\] now"),
        ({"null_values": ["NA"]}, "'null_values' was"),
        ({"multi_valued": {}, "categorical": ["user", "item", "tags"]}, "'multi_valued' was"),
    ],
)
def test_what_changed_is_said(
    folder: Path, tmp_path: Path, change: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=rf"1\.csv cannot extend .*first: .*{error}"):
        prepare(source(folder / "1.csv", **change), tmp_path / "new", extend=folder / "first")
    assert not any(tmp_path.iterdir()), "nothing is left behind"


def test_other_formats_counts_and_places(folder: Path, tmp_path: Path, criteo_sample: Path) -> None:
    extend, new = folder / "first", tmp_path / "new"
    with pytest.raises(ConfigError, match="its format was table, it is criteo now"):
        prepare(open_raw("criteo", [criteo_sample]), new, extend=extend)
    for counts in ({"min_count": 2}, {"field_min_counts": {"user": 4}}):
        with pytest.raises(ConfigError, match=r"count of field 'user' is 3 in .*first, [24] here"):
            prepare(source(folder / "1.csv"), new, extend=extend, **counts)
    with pytest.raises(ConfigError, match="min_count for 'usr': no such field"):
        prepare(source(folder / "1.csv"), new, extend=extend, field_min_counts={"usr": 3})
    with pytest.raises(ConfigError, match="cannot be extended in its own place"):
        prepare(source(folder / "1.csv"), extend, extend=extend, overwrite=True)
    with pytest.raises(DataError, match="not a prepared data set"):
        prepare(source(folder / "1.csv"), new, extend=tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copy(extend / "schema.json", tmp_path / "run")  # as a run has one
    with pytest.raises(DataError, match=r"run: not a prepared data set \(no vocabularies\)"):
        prepare(source(folder / "1.csv"), new, extend=tmp_path / "run")
    # The same counts may be said again, and files be written in another way.
    text = (folder / "1.csv").read_text().replace(",", ";")
    (tmp_path / "other.csv").write_text(text)
    same = {"min_count": 3, "field_min_counts": {"item": 1}}
    prepare(source(tmp_path / "other.csv", separator=";"), new, extend=extend, **same)


def test_of_data_that_kept_no_rare_categories_new_rows_decide(folder: Path, tmp_path: Path) -> None:
    """As mlet prepared it before: with minimum counts, and nothing of what was below them."""
    old = tmp_path / "old"
    prepare(source(folder / "0.csv"), old, min_count=3)
    file = layout.rare(old, "user")
    rare = pl.read_parquet(file)
    for each in file.parent.iterdir():
        each.unlink()
    values = read_sealed(old / "schema.json", DataError, "")
    sums = values["checksums"]
    values["checksums"] = {k: v for k, v in sums.items() if not k.startswith("rare/")}
    write_sealed(old / "schema.json", values)
    with pytest.warns(UserWarning, match=r"did not keep the counts of rare .*new rows alone"):
        prepare(source(folder / "0.csv"), tmp_path / "new", extend=old, split=SplitRule(seed=3))
    new = PreparedDataset(tmp_path / "new")
    assert (
        new.vocabulary("user")["count"][0] == rare["count"].sum() + new.rare("user")["count"].sum()
    )
    assert new.vocabulary("user")["count"].slice(1).min() >= 3


def test_rare_categories_are_damaged_files_like_others(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare(source(folder / "0.csv"), data, min_count=3)
    file = layout.rare(data, "user")
    assert pl.read_parquet(file)["count"].max() <= 2
    file.write_bytes(b"none")
    with pytest.raises(DataError, match=r"rare/user\.parquet: damaged"):
        prepare(source(folder / "1.csv"), tmp_path / "new", extend=data)
    assert not (tmp_path / "new").exists()
    assert len(Vocabulary(PreparedDataset(data).vocabulary("user"), 1).rare) == 0
