"""Time: one form and unit for all files, or a refusal; nothing is guessed."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from logs_made import SCHEMA, START, clicks, moments, read, write_csv, write_schema

from mlet.data.schema import SPLITS
from mlet.data.source import TIME
from mlet.errors import ConfigError, DataError

Mlet = Callable[..., "subprocess.CompletedProcess[str]"]
Show = Callable[[dt.datetime], object]


def seconds(moment: dt.datetime) -> int:
    return int(moment.replace(tzinfo=dt.timezone.utc).timestamp())


FORMS: dict[str, Show] = {
    "dates": lambda moment: moment.isoformat(),
    "dates with an offset from UTC": lambda moment: f"{moment.isoformat()}+02:00",
    "seconds since 1970": seconds,
    "milliseconds since 1970": lambda moment: seconds(moment) * 1000,
    "integers, by their digits YYYYMMDD": lambda moment: f"{moment:%Y%m%d}",
    "integers, by their digits YYYYMMDDHHMM": lambda moment: f"{moment:%Y%m%d%H%M}",
    "integers, of no known unit": lambda moment: (moment - START).days,
}


@pytest.mark.parametrize("one", FORMS)
@pytest.mark.parametrize("other", FORMS)
def test_two_files_of_two_forms_are_refused_by_their_names(
    tmp_path: Path, one: str, other: str
) -> None:
    files = [
        write_csv(tmp_path / "old.csv", clicks(40, FORMS[one])),
        write_csv(tmp_path / "new.csv", clicks(40, FORMS[other], first=40)),
    ]
    if one == other:
        assert read(files, SCHEMA)[TIME].is_sorted()
        return
    with pytest.raises(DataError, match=r"new\.csv.*'when' holds .*old\.csv") as error:
        read(files, SCHEMA)
    assert one in str(error.value)
    assert other in str(error.value)
    assert "time_format" in str(error.value)


def test_a_count_may_grow_as_large_as_seconds_are(tmp_path: Path) -> None:
    rows = [{"click": 0, "user": "u", "when": 90_000_000 + 20_000_000 * i} for i in range(3)]
    files = [write_csv(tmp_path / f"{i}.csv", [row]) for i, row in enumerate(rows)]
    whole = write_csv(tmp_path / "whole.csv", rows)
    assert len(read([whole], SCHEMA)) == 3
    with pytest.raises(DataError, match="say time_format"):
        read(files, SCHEMA)
    assert len(read(files, {**SCHEMA, "time_format": "integers"})) == 3


def test_two_units_in_one_file_are_refused(tmp_path: Path) -> None:
    rows = [*clicks(3, seconds), *clicks(3, lambda moment: seconds(moment) * 1000)]
    path = write_csv(tmp_path / "mixed.csv", rows)
    with pytest.raises(DataError, match=r"mixed\.csv: .*seconds since 1970.*milliseconds"):
        read([path], SCHEMA)
    with pytest.raises(DataError, match=r"line 5: .*expected seconds since 1970, of 1900 to 2200"):
        read([path], {**SCHEMA, "time_format": "seconds"})
    mixed = [*clicks(2, FORMS["dates"]), *clicks(2, FORMS["dates with an offset from UTC"])]
    path = write_csv(tmp_path / "offsets.csv", mixed)
    with pytest.raises(DataError, match="with an offset from UTC in line 4, without one in line 2"):
        read([path], SCHEMA)


@pytest.mark.parametrize(
    ("time_format", "show"),
    [
        ("%d/%m/%Y %H:%M", lambda moment: f"{moment:%d/%m/%Y %H:%M}"),
        ("%m/%d/%Y %I:%M %p", lambda moment: f"{moment:%m/%d/%Y %I:%M %p}"),
        ("%d/%b/%Y:%H:%M:%S", lambda moment: f"{moment:%d/%b/%Y:%H:%M:%S}"),
        ("%y%m%d%H", lambda moment: f"{moment:%y%m%d%H}"),
        ("%Y%m%d%H%M%S", lambda moment: f"{moment:%Y%m%d%H%M%S}"),
        ("seconds", lambda moment: f"{seconds(moment)}.25"),
        ("milliseconds", lambda moment: seconds(moment) * 1000 + 250),
        ("microseconds", lambda moment: seconds(moment) * 10**6 + 250_000),
        ("nanoseconds", lambda moment: seconds(moment) * 10**9 + 250_000_000),
        ("iso", lambda moment: moment.isoformat()),
    ],
)
def test_a_time_format_says_what_the_values_do_not(
    tmp_path: Path, time_format: str, show: Show
) -> None:
    path = write_csv(tmp_path / "t.csv", clicks(120, show))
    typed = tmp_path / "t.parquet"
    pl.DataFrame(clicks(3, lambda moment: moment, first=120)).write_parquet(typed)
    schema = {**SCHEMA, "time_format": time_format}
    found = read([path], schema)[TIME].to_list()
    late = 250_000 if "seconds" in time_format else 0
    assert found == [seconds(moment) * 10**6 + late for moment in moments(120)]
    if time_format in ("iso",) or "%" in time_format:  # a Parquet file has its own form
        assert read([path, typed], schema)[TIME].is_sorted()
    else:
        with pytest.raises(DataError, match=r"t\.parquet: column 'when' holds dates"):
            read([path, typed], schema)


@pytest.mark.parametrize("time_format", ["%d/%m", "day first", "%H:%M", "%", "secs", "%Y"])
def test_what_is_no_form_of_a_date_is_refused(tmp_path: Path, time_format: str) -> None:
    path = write_csv(tmp_path / "t.csv", clicks(2, seconds))
    with pytest.raises(ConfigError, match="'time_format' must be one of iso, seconds"):
        read([path], {**SCHEMA, "time_format": time_format})


def test_day_and_month_are_not_guessed_and_every_splits_range_is_shown(
    tmp_path: Path, mlet: Mlet
) -> None:
    write_csv(tmp_path / "clicks.csv", clicks(200, lambda moment: f"{moment:%d/%m/%Y %H:%M}"))
    write_schema(tmp_path / "schema.yaml", SCHEMA)
    words = ("prepare", "table", "clicks.csv", "--schema", "schema.yaml", "--out", "data")
    error = mlet(*words, code=2).stderr
    assert re.search(r"clicks\.csv, line 2: column 'when' holds '01/03/2024 00:00'", error)
    assert "'%d/%m/%Y' or '%m/%d/%Y'" in error
    write_schema(tmp_path / "schema.yaml", {**SCHEMA, "time_format": "%m/%d/%Y %H:%M"})
    error = mlet(*words, code=2).stderr
    assert "line 98: column 'when' holds '13/03/2024 00:00'" in error, "no thirteenth month"
    assert not (tmp_path / "data").exists()
    write_schema(tmp_path / "schema.yaml", {**SCHEMA, "time_format": "%d/%m/%Y %H:%M"})
    shown = mlet(*words).stdout
    edges = [moments(200)[row] for row in (0, 159, 160, 179, 180, 199)]
    for split, first, last in zip(SPLITS, edges[::2], edges[1::2], strict=True):
        assert re.search(rf"{split}.*{first}.*{last}", shown), shown


def test_ranges_of_integers_are_shown_as_what_they_are(tmp_path: Path, mlet: Mlet) -> None:
    write_schema(tmp_path / "schema.yaml", SCHEMA)
    for name, show in (("a", seconds), ("b", lambda moment: seconds(moment) - seconds(START))):
        write_csv(tmp_path / f"{name}.csv", clicks(100, show))
        words = ("--schema", "schema.yaml", "--out", name, "--split", "random")
        shown = mlet("prepare", "table", f"{name}.csv", *words).stdout
        train = next(line for line in shown.splitlines() if "train" in line)
        if name == "a":
            assert re.search(r"2024-03-\d\d \d\d:00:00.*2024-03-1\d", train)
        else:
            assert re.search(r"│ +\d{1,7} │ +\d{1,7} │$", train.rstrip())
