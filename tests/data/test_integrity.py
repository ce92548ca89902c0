"""Whether weights belong to data, one difference at a time; files that changed behind our back."""

from __future__ import annotations

import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mlet.data import PreparedDataset
from mlet.data.checksums import checksums, verify
from mlet.data.identity import check_data
from mlet.data.schema import DatasetSchema
from mlet.errors import DataError, RunError


@dataclass
class Data:
    """All of a data set that is asked about."""

    schema: DatasetSchema
    root: Path = Path("data")


def changed(schema: DatasetSchema, **changes: object) -> DatasetSchema:
    return DatasetSchema.model_validate(schema.model_dump(mode="json") | changes)


def first(schema: DatasetSchema, part: str, **changes: object) -> DatasetSchema:
    """The first field or dense feature changed."""
    entries = schema.model_dump(mode="json")[part]
    return changed(schema, **{part: [entries[0] | changes, *entries[1:]]})


@pytest.fixture(scope="module")
def schema(small_data: Path) -> DatasetSchema:
    return PreparedDataset(small_data).schema


def test_the_first_difference_is_named(schema: DatasetSchema) -> None:
    others = {
        "its fields are X, C2, C3, trained on were C1, C2, C3": {"name": "X"},
        "field 'C1' is multi-valued in one of them only": {"multi_valued": True},
        "field 'C1' has 3 categories": {"num_categories": 3},
        "the ids of field 'C1' stand for other categories": {"digest": "0"},
    }
    for message, changes in others.items():
        other = first(schema, "fields", **changes)
        with pytest.raises(RunError, match=message):
            check_data(schema, Data(other), Path("run"))
    for other in (first(schema, "dense", scale="none"), changed(schema, dense=[])):
        with pytest.raises(RunError, match="its dense features, or their scaling, are others"):
            check_data(schema, Data(other), Path("run"))
    check_data(schema, Data(changed(schema, seed=9)), Path("run"))


@pytest.mark.parametrize("with_checksums", [True, False])
def test_the_same_rows_are_those_of_the_same_split(
    schema: DatasetSchema, with_checksums: bool
) -> None:
    if not with_checksums:  # as mlet 0.1 prepared it
        schema = changed(schema, checksums=None)
        others = [changed(schema, seed=9), changed(schema, split_by="order")]
    else:
        assert schema.checksums
        sums = dict.fromkeys(schema.checksums, 1)
        others = [changed(schema, checksums=sums)]
        # The same categories, written as Parquet by another version of its library.
        again = {file: 1 if "vocabularies" in file else s for file, s in schema.checksums.items()}
        assert again != schema.checksums
        check_data(schema, Data(changed(schema, checksums=again)), Path("run"), same_rows=True)
    check_data(schema, Data(schema), Path("run"), same_rows=True)
    for other in others:
        with pytest.raises(RunError, match="its rows or their split are others"):
            check_data(schema, Data(other), Path("run"), same_rows=True)
        check_data(schema, Data(other), Path("run"))


def test_a_checksum_is_of_the_whole_file(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "column").write_bytes(content)
    assert checksums(tmp_path) == {"folder/column": zlib.crc32(content)}


def test_a_file_that_changes_is_read_again(small_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(small_data, root)
    expected = PreparedDataset(root).schema.checksums
    column = next(path for path in (root / "valid").iterdir() if path.suffix == ".npy")
    verify(root, column, expected)
    content = bytearray(column.read_bytes())
    content[-1] ^= 1
    column.write_bytes(content)
    os.utime(column, (2e9, 2e9))  # some file systems count whole seconds
    with pytest.raises(DataError, match="damaged, or of another data set"):
        verify(root, column, expected)
