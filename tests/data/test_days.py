"""Criteo's 1 TB logs, small: a file a day, packed or not, and the last day held out."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest

from mlet.data import PreparedDataset, SplitRule, prepare
from mlet.data.readers import CriteoSource
from mlet.errors import ConfigError, DataError

ROWS = 5


def write_days(folder: Path, days: int) -> dict[int, Path]:
    """Day i has i as I1, a category of its own as C1, and five rows; every third is plain text."""
    folder.mkdir()
    draw = random.Random(0)
    files = {}
    for day in range(days):
        lines = [
            "\t".join([str(row % 2), str(day), *[""] * 12, f"{day:08x}",
                       *(f"{draw.getrandbits(2):08x}" for _ in range(25))])
            for row in range(ROWS)
        ]  # fmt: skip
        text = ("\n".join(lines) + "\n").encode()
        files[day] = folder / (f"day_{day}.gz" if day % 3 else f"day_{day}")
        files[day].write_bytes(gzip.compress(text) if day % 3 else text)
    return files


def days_of(data: PreparedDataset, split: str) -> list[int]:
    dense = data.split(split).dense  # type: ignore[arg-type]
    return np.expm1(dense[:, 0].astype(np.float64)).round().astype(int).tolist()


@pytest.mark.parametrize("given", ["as the shell sorts them", "folder", "pattern"])
def test_the_last_of_24_days_is_halved(tmp_path: Path, given: str) -> None:
    files = write_days(tmp_path / "logs", 24)
    named = sorted(files.values())
    assert named[2].name.startswith("day_10"), "which the shell has before day_2"
    paths = {"folder": [tmp_path / "logs"], "pattern": [tmp_path / "logs" / "day_*"]}
    source = CriteoSource(paths.get(given, named))
    schema = prepare(source, tmp_path / "d")
    assert schema.split_by == "last-day"
    assert source.description.startswith("criteo: day_0, day_1.gz, day_2.gz, day_3, day_4.gz")
    data = PreparedDataset(tmp_path / "d")
    assert days_of(data, "train") == [day for day in range(23) for _ in range(ROWS)]
    # The first half is validation, and has the row more, as in TorchRec.
    assert days_of(data, "valid") == [23] * 3
    assert days_of(data, "test") == [23] * 2
    known = data.vocabulary("C1")["category"].to_list()[1:]
    assert known == [f"{day:08x}" for day in range(23)], "none of the day held out"
    assert (data.split("valid").ids[0] == 0).all()


def test_other_splits_of_days(tmp_path: Path) -> None:
    files = write_days(tmp_path / "logs", 12)
    source = CriteoSource(list(files.values()))
    by_time = prepare(source, tmp_path / "t", split=SplitRule("time", 0.25, 0.25))
    by_order = prepare(source, tmp_path / "o", split=SplitRule("order", 0.25, 0.25))
    assert by_time.checksums == by_order.checksums, "each day's rows stay in their order"
    with pytest.raises(ConfigError, match=r"the last day is halved; leave the shares out"):
        prepare(source, tmp_path / "s", split=SplitRule(valid=0.2))
    alone = CriteoSource([files[3]])
    assert alone.default_split == "order", "of one day"
    with pytest.raises(DataError, match="train split would be empty: all rows are of one day"):
        prepare(alone, tmp_path / "a", split=SplitRule("last-day"))
    other = tmp_path / "train.txt"
    other.write_bytes(files[3].read_bytes())
    with pytest.raises(ConfigError, match="cannot split by 'last-day': the source's own split is"):
        prepare(CriteoSource([other]), tmp_path / "b", split=SplitRule("last-day"))


def test_days_that_come_twice(tmp_path: Path) -> None:
    files = write_days(tmp_path / "logs", 2)
    packed = files[0].with_name("day_0.gz")
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    with pytest.raises(DataError, match=r"day_0.gz: day 0 is in .*day_0, too; name one of them"):
        CriteoSource([tmp_path / "logs"])


def test_rows_to_be_scored_keep_the_order_of_their_files(tmp_path: Path) -> None:
    files = write_days(tmp_path / "logs", 3)
    source = CriteoSource([files[2], files[0]])
    assert [rows.features["field:C1"][0] for rows in source.rows([])] == ["00000002", "00000000"]
