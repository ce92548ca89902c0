"""Vectors of co-occurrence against the matrix they come from, formed and decomposed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from mlet.data import PreparedDataset
from mlet.data.co_occurrence import co_occurrence_vectors, kept_co_occurrence_vectors
from mlet.data.prepare import prepare
from mlet.data.readers.table import TableSchema, TableSource


def prepared(folder: Path, rows: dict[str, object], **schema: object) -> PreparedDataset:
    pl.DataFrame(rows).write_parquet(folder / "rows.parquet")
    values = {"label": "label", "split": {"column": "part"}, **schema}
    prepare(
        TableSource([folder / "rows.parquet"], TableSchema.parse(values, "test")), folder / "data"
    )
    return PreparedDataset(folder / "data")


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Three groups of users, films and bags of tags: rows hold categories of one group, mostly."""
    generator = np.random.default_rng(0)
    n = 6_000
    group = generator.integers(3, size=n)

    def draw(size: int) -> np.ndarray:
        other = np.where(generator.random(n) < 0.1, generator.integers(3, size=n), group)
        return other * size + generator.integers(size, size=n)

    tags = [
        [int(g * 4 + t) for t in generator.integers(4, size=generator.integers(0, 3))]
        for g in group
    ]
    rows = {
        "label": generator.integers(2, size=n),
        "user": draw(30),
        "film": draw(20),
        "tags": tags,
        "part": generator.choice([0, 1, 2], p=[0.8, 0.1, 0.1], size=n),
    }
    return prepared(
        tmp_path_factory.mktemp("groups"),
        rows,
        categorical=["user", "film"],
        multi_valued={"tags": "|"},
    )


def matrix(data: PreparedDataset) -> tuple[np.ndarray, np.ndarray]:
    """C and the number of rows of each category (bags count by their shares), formed row by row."""
    names = [field.name for field in data.schema.fields]
    sizes = [field.num_categories for field in data.schema.fields]
    starts = dict(zip(names, np.cumsum([0, *sizes[:-1]]), strict=True))
    columns = data.split("train")
    members = []
    for row in range(len(columns)):
        shares = {
            field.name: {int(starts[field.name] + columns.ids[place][row]): 1.0}
            for place, field in enumerate(data.schema.one_valued)
        }
        for name, (values, offsets) in columns.bags.items():
            bag = values[offsets[row] : offsets[row + 1]]
            found: dict[int, float] = {}
            for value in bag:
                key = int(starts[name] + value)
                found[key] = found.get(key, 0.0) + 1 / len(bag)
            shares[name] = found
        members.append(shares)
    total, counts = np.zeros((sum(sizes), sum(sizes))), np.zeros(sum(sizes))
    for shares in members:
        for name, mine in shares.items():
            for one, weight in mine.items():
                counts[one] += weight
                for other_name, others in shares.items():
                    if other_name != name:
                        for other, share in others.items():
                            total[one, other] += weight * share
    return total, counts


def test_the_space_is_that_of_the_leading_eigenvectors(groups: PreparedDataset) -> None:
    total, counts = matrix(groups)
    scale = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1e-12)), 0.0)
    normalised = scale[:, None] * total * scale[None, :]
    np.testing.assert_allclose(normalised, normalised.T)
    _, eigenvectors = np.linalg.eigh(normalised)
    # Three groups: three eigenvalues stand out, so that iteration has converged on their space.
    leading = eigenvectors[:, -3:]
    found = torch.cat(list(co_occurrence_vectors(groups, 3, passes=30).values())).double().numpy()
    # Rows are scaled to length one; a row of the space is known up to its length.
    expected = scale[:, None] * leading
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)


def test_categories_of_a_group_are_near_one_another(groups: PreparedDataset) -> None:
    vectors = co_occurrence_vectors(groups, 8)
    for name, size in (("user", 30), ("film", 20), ("tags", 4)):
        known = groups.vocabulary(name)["category"].cast(pl.Int64, strict=False).to_numpy()
        found, group = vectors[name][1:].numpy(), np.asarray(known)[1:] // size
        cosines, same = found @ found.T, group[:, None] == group[None, :]
        np.fill_diagonal(cosines, np.nan)
        assert np.nanmean(cosines[same]) > 0.8 > 0.4 > np.nanmean(cosines[~same])
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        assert not vectors[name][0].any(), "nothing is known of the unknown"


def test_the_same_each_time_and_of_some_rows_only(groups: PreparedDataset) -> None:
    first, again = (co_occurrence_vectors(groups, 4) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    told: list[int] = []
    co_occurrence_vectors(
        groups, 4, passes=3, max_rows=1, report=lambda what, done, total: told.append(done)
    )
    assert told == [0, 1, 2]


def test_they_are_computed_once(groups: PreparedDataset, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(groups.root, root)
    data, told = PreparedDataset(root), []

    def report(what: str, done: int, total: int | None) -> None:
        told.append(what)

    first = kept_co_occurrence_vectors(data, 4, report=report)
    calls = len(told)
    assert calls > 0
    again = kept_co_occurrence_vectors(data, 4, report=report)
    assert len(told) == calls, "nothing was computed"
    expected = co_occurrence_vectors(data, 4)
    for found in (first, again):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    kept_co_occurrence_vectors(data, 5, report=report)
    assert len(told) > calls, "another width is another file"


def test_kept_vectors_that_are_damaged_or_of_other_data_are_made_anew(
    groups: PreparedDataset, tmp_path: Path
) -> None:
    expected = co_occurrence_vectors(groups, 4)
    root = tmp_path / "data"
    shutil.copytree(groups.root, root)
    data = PreparedDataset(root)
    file = root / "co_occurrence-4.pt"
    kept_co_occurrence_vectors(data, 4)
    whole = file.read_bytes()
    others = {name: torch.zeros_like(part) for name, part in expected.items()}
    for damage in ("cut", "flipped", "other"):
        if damage == "cut":
            file.write_bytes(whole[: len(whole) // 2])
        elif damage == "flipped":
            middle = len(whole) // 2
            file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
        else:
            torch.save({"data": "of another", "vectors": others}, file)
        found = kept_co_occurrence_vectors(data, 4)
        assert all(torch.equal(found[name], expected[name]) for name in expected), damage
        kept = torch.load(file, weights_only=True)["vectors"]
        assert all(torch.equal(kept[name], expected[name]) for name in expected), damage


def test_one_field_has_no_co_occurrences(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = {
        "label": generator.integers(2, size=300),
        "user": generator.integers(9, size=300),
        "part": generator.choice([0, 1, 2], size=300),
    }
    data = prepared(tmp_path, rows, categorical=["user"])
    assert not co_occurrence_vectors(data, 4)["user"].any()
