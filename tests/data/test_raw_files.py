"""Rows come back from whatever file they are in, under whatever names."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import RawTable, raw_tables

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import TableSource
from mlet.data.schema import SPLITS


def prepared(path: Path, table: RawTable) -> PreparedDataset:
    out = path.with_name(f"{path.name} prepared")
    prepare(TableSource([path], table.parsed()), out, split=SplitRule("order", 0.2, 0.2))
    return PreparedDataset(out)


@settings(max_examples=60, deadline=None)
@given(table=raw_tables(), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_and_parquet_hold_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, table: RawTable, quoting: int
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    text = prepared(table.write_csv(folder / "rows.csv", quoting), table)
    binary = prepared(table.write_parquet(folder / "rows.parquet"), table)
    assert text.schema.fields == binary.schema.fields
    assert text.schema.checksums == binary.schema.checksums, "the same files, to the bit"
    place = 0
    for split in SPLITS:
        columns = text.split(split)
        rows = slice(place, place + len(columns.labels["label"]))
        place = rows.stop
        for number, name in enumerate(table.schema["categorical"]):
            known = text.vocabulary(name)["category"].to_list()
            given_ = [word if word in known else None for word in table.columns[name][rows]]
            assert [known[id] for id in columns.ids[number]] == given_
        for name in table.schema["multi_valued"]:
            known = text.vocabulary(name)["category"].to_list()
            values, offsets = columns.bags[name]
            assert [[known[id] for id in values[a:b]] for a, b in pairwise(offsets)] == [
                [word if word in known else None for word in bag]
                for bag in table.columns[name][rows]
            ]
        for number, (name, scale) in enumerate(table.schema["dense"].items()):
            exact = np.array(table.columns[name][rows], dtype=np.float64)
            expected = np.log1p(np.maximum(exact, 0)) if scale == "log" else exact
            np.testing.assert_allclose(columns.dense[:, number], expected, rtol=1e-6)
    assert place == len(table.columns[table.schema["label"]])
