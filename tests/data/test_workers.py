"""Preparation by two processes of Ray: the bytes, errors and warnings of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from mlet.cli.prepare import _workers
from mlet.data import SplitRule, prepare
from mlet.data.compressed import STDIN
from mlet.data.ray_workers import RayWorkers
from mlet.data.readers import CriteoSource, MovieLensSource, TableSchema, TableSource
from mlet.data.workers import WorkerDied
from mlet.errors import ConfigError, DataError, RunError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mlet[ray]'")

SCHEMA = TableSchema(
    label="click",
    weight="w",
    time="t",
    dense={"x": {"scale": "log", "missing_indicator": True}, "y": "standard", "z": "quantile"},
    categorical=["user", "item"],
    multi_valued={"tags": "|"},
    shares={"tags": "item"},
    group="user",
    keep=["device"],
)
PLAIN = TableSchema(label="click", time="t", categorical=["user"])


@pytest.fixture(scope="module")
def ray_workers() -> Iterator[RayWorkers]:
    """Two processes, for all tests here: to start them takes seconds."""
    with RayWorkers() as workers:
        workers.count = 2
        yield workers


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows make several tasks of every kind."""
    monkeypatch.setattr(sys.modules["mlet.data.staging"], "_CHUNK_ROWS", 500)
    monkeypatch.setattr(sys.modules["mlet.data.categories"], "_MERGED", 1_000)
    monkeypatch.setattr(sys.modules["mlet.data.readers.table"], "_PART_ROWS", 400)


def table(rows: int, seed: int) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    bags = [list(map(str, generator.integers(90, size=i % 4))) for i in range(rows)]
    return pl.DataFrame(
        {
            "click": generator.integers(2, size=rows),
            "w": generator.random(rows) * 3,
            "t": generator.integers(10**9, 2 * 10**9, size=rows),
            "x": [None if value < 0.1 else value * 99 for value in generator.random(rows)],
            "y": generator.normal(size=rows),
            "z": generator.exponential(size=rows),
            "user": generator.integers(300, size=rows) ** 2 // 100,
            "item": generator.integers(90, size=rows),
            "tags": ["|".join(bag) for bag in bags],
            "device": [None if i % 7 == 0 else f"d{i % 5}" for i in range(rows)],
        }
    )


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = contents(one), contents(other)
    assert len(mine) > 10
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


@pytest.mark.usefixtures("small_chunks")
def test_the_bytes_are_those_of_one_process(tmp_path: Path, ray_workers: RayWorkers) -> None:
    folder = tmp_path / "raw"
    for day in range(2):
        (folder / f"day={day}").mkdir(parents=True)
        table(900, day).write_parquet(folder / f"day={day}" / "p.parquet")
    table(700, 2).write_csv(folder / "rest.csv")
    source = TableSource([folder], SCHEMA)
    assert len(source.parts()) == 7  # three of each Parquet file, and the text
    for name, workers in (("one", None), ("ray", ray_workers)):
        more = SplitRule("random", seed=3)
        prepare(source, tmp_path / name, split=more, min_count=3, workers=workers)
        later = TableSource([folder / "rest.csv"], SCHEMA)
        extend = tmp_path / "one"  # the same for both, as a data set's name is in no file
        prepare(later, tmp_path / f"{name}-later", extend=extend, workers=workers)
    assert_same(tmp_path / "one", tmp_path / "ray")
    assert_same(tmp_path / "one-later", tmp_path / "ray-later")


@pytest.mark.usefixtures("small_chunks")
def test_days_of_criteo(tmp_path: Path, criteo_sample: Path, ray_workers: RayWorkers) -> None:
    lines = criteo_sample.read_text().splitlines(keepends=True)[:300]
    for day in (2, 10):  # by number, not by name
        (tmp_path / f"day_{day}").write_text("".join(lines[day * 10 : day * 10 + 120]))
    source = CriteoSource([tmp_path / "day_10", tmp_path / "day_2"])
    for name, workers in (("one", None), ("ray", ray_workers)):
        prepare(source, tmp_path / name, workers=workers)
    assert_same(tmp_path / "one", tmp_path / "ray")


def _bad_label(files: list[pl.DataFrame]) -> None:
    files[1][30, "click"] = 7


def _other_times(files: list[pl.DataFrame]) -> None:
    files[2] = files[2].with_columns(t=pl.col("t") * 1000)


def _both(files: list[pl.DataFrame]) -> None:
    """The second is met by the worker first, in the same file; the first comes first."""
    _other_times(files)
    files[2][30, "click"] = 7


def _more_than_may_be_skipped(files: list[pl.DataFrame]) -> None:
    for place in range(3):
        files[place][5, "click"] = 5 + place


@pytest.mark.parametrize(
    ("spoil", "skipped", "said"),
    [
        (_bad_label, 0, "1.csv, line 32: column 'click' holds '7'"),
        (_other_times, 0, "2.csv, line 2: column 't' holds"),
        (_both, 0, "2.csv, line 32: column 'click' holds '7'"),
        (_more_than_may_be_skipped, 2, "2.csv, line 7: .*with it more rows are bad than the 2"),
    ],
)
def test_errors_are_those_of_one_process(
    tmp_path: Path,
    ray_workers: RayWorkers,
    spoil: Callable[[list[pl.DataFrame]], None],
    skipped: int,
    said: str,
) -> None:
    files = [table(60, seed).select("click", "t", "user") for seed in range(3)]
    spoil(files)
    for place, frame in enumerate(files):
        frame.write_csv(tmp_path / f"{place}.csv")
    before = sorted(tmp_path.iterdir())
    errors = []
    for workers in (None, ray_workers):
        source = TableSource([tmp_path / "?.csv"], PLAIN, skip_bad_rows=skipped)
        with pytest.raises(DataError, match=said) as raised:
            prepare(source, tmp_path / "out", workers=workers)
        errors.append(str(raised.value))
        assert sorted(tmp_path.iterdir()) == before
    assert errors[0] == errors[1]


def test_what_is_skipped_and_warned_of_is_that_of_one_process(
    tmp_path: Path, ray_workers: RayWorkers
) -> None:
    frames = [table(60, seed).select("click", "t", "user") for seed in range(3)]
    frames[0][5, "click"] = frames[2][9, "click"] = 9
    frames[1] = frames[1].with_columns(user="u" + pl.col("user").cast(pl.String))
    for place, frame in enumerate(frames):
        frame.write_csv(tmp_path / f"{place}.csv")
    seen = []
    for name, workers in (("one", None), ("ray", ray_workers)):
        source = TableSource([tmp_path / "?.csv"], PLAIN, skip_bad_rows=5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            prepare(source, tmp_path / name, workers=workers)
        assert source.bad_rows is not None
        said = [str(one.message) for one in caught if one.category is UserWarning]
        seen.append((source.bad_rows.counts, source.bad_rows.first, said, source.time_kind))
    assert seen[0] == seen[1]
    assert seen[0][0] == {"column 'click' unreadable": 2}
    assert "'user' holds whole numbers" in seen[0][2][0]
    assert_same(tmp_path / "one", tmp_path / "ray")


class Dying(TableSource):
    """Kills the process that reads it, as often as there are files to take."""

    def read(self, part: Any, notes: Any) -> Iterator[pl.DataFrame]:
        lives = sorted(self.paths[0].parent.glob("life-*"))
        if lives:
            lives[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(part, notes)


def test_a_worker_that_dies(tmp_path: Path, ray_workers: RayWorkers) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no tests
    file = tmp_path / "rows.csv"
    table(300, 0).write_csv(file)
    (tmp_path / "life-0").touch()
    prepare(Dying([file], PLAIN), tmp_path / "ray", workers=ray_workers)
    prepare(TableSource([file], PLAIN), tmp_path / "one")
    assert_same(tmp_path / "one", tmp_path / "ray")
    for life in range(3):
        (tmp_path / f"life-{life}").touch()
    with pytest.raises(WorkerDied, match=r"rows\.csv: a worker of Ray died 3 times") as raised:
        prepare(Dying([file], PLAIN), tmp_path / "out", workers=ray_workers)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "ray", "rows.csv"]


def test_a_machine_without_the_folder(
    tmp_path: Path, ray_workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert ray_workers.submit(os.getcwd)() == str(gone)
    monkeypatch.setattr(os, "getcwd", lambda: str(gone))
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"gone: not on .*, where a worker of Ray runs"):
        ray_workers.submit(len, "abc")()


def test_what_workers_cannot_read(tmp_path: Path, movielens: Path, ray_workers: RayWorkers) -> None:
    with pytest.raises(ConfigError, match=r"movielens: .* one after another.*leave --on out"):
        prepare(MovieLensSource(movielens), tmp_path / "d", workers=ray_workers)
    with pytest.raises(ConfigError, match="standard input is this process's alone"):
        prepare(CriteoSource([STDIN]), tmp_path / "d", workers=ray_workers)
    for wrong in ("spark", "ray=", "rays"):
        with pytest.raises(ConfigError, match=rf"--on '{wrong}': expected ray or ray=ADDRESS"):
            _workers(wrong)


def test_no_cluster_there(mlet: Callable[..., Any]) -> None:
    """It is seen at once, where Ray alone would wait for minutes."""
    command = ("prepare", "criteo", "rows.txt", "--out", "d", "--on", "ray=127.0.0.1:1")
    result = mlet(*command, code=2)
    assert "--on ray: no cluster at 127.0.0.1:1" in result.stderr


@pytest.mark.slow
def test_interrupted_it_leaves_nothing(tmp_path: Path, mlet_command: Path) -> None:
    """Cold: signals are the matter."""
    pl.concat([table(60_000, seed) for seed in range(5)]).write_csv(tmp_path / "rows.csv")
    (tmp_path / "s.yaml").write_text("label: click\ncategorical: [user, item]\n")
    command = [mlet_command, "prepare", "table", "rows.csv", "--schema", "s.yaml", "--out", "d"]
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(
        [*command, "--on", "ray"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while process.poll() is None and not list(tmp_path.glob(".d.*/.staging")):
        assert time.monotonic() < end
        time.sleep(0.02)
    theirs = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in one.name() for one in theirs)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0, said
    _, alive = psutil.wait_procs(theirs, timeout=30)
    assert alive == []
    assert sorted(tmp_path.iterdir()) == before
