"""Counting the categories of a field exactly, by engines that know clusters.

Ray's tasks as `mlet prepare --on ray` uses them, Ray Data's and Spark's own group-by, each with two
processors of this machine, on the same Parquet files; and this process alone. Each is a process of
its own. The time to start the engine is told apart, and the counts are checked to be the same.

    python benchmarks/prepare_engines.py --rows 2000000 --field C3 --spark-python /venv/bin/python

Spark runs in an environment of its own, with pyspark and a Java machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

#: What an engine gives: seconds to start, seconds to count, categories, and occurrences.
Found = tuple[float, float, int, int]


def here(folder: Path, field: str) -> Found:
    from mlet.data.workers import Here

    return _by_mlet(Here(), 0.0, folder, field)


def ray_tasks(folder: Path, field: str) -> Found:
    from mlet.data.ray_workers import RayWorkers

    began = time.perf_counter()
    with RayWorkers() as workers:
        for promise in [workers.submit(len, "abc") for _ in range(2)]:
            promise()
        return _by_mlet(workers, time.perf_counter() - began, folder, field)


def _by_mlet(workers: object, start: float, folder: Path, field: str) -> Found:
    import polars as pl

    from mlet.data.categories import begin_counting
    from mlet.data.source import field_column
    from mlet.data.split import SplitRule, divide
    from mlet.data.staging import Staged, StagedFile

    files = sorted(folder.glob("*.parquet"))
    staged = Staged(
        folder, [StagedFile(f.name, pl.scan_parquet(f).select(pl.len()).collect().item())
                 for f in files]
    )  # fmt: skip
    division = divide(staged, "order", SplitRule())
    began = time.perf_counter()
    scratch = folder / type(workers).__name__
    columns = {field_column(field): False}
    counts = begin_counting(workers, division, columns, scratch, training=False)().counts()
    return start, time.perf_counter() - began, len(counts), int(counts["count"].sum())


def ray_data(folder: Path, field: str) -> Found:
    import logging

    import ray

    began = time.perf_counter()
    ray.init(
        num_cpus=4, include_dashboard=False, object_store_memory=10**9,  # with 2 it waits for ever
        log_to_driver=False, logging_level=logging.CRITICAL,
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.default_hash_shuffle_parallelism = 2  # of 200, which are for clusters
    ray.get([ray.remote(lambda: 0).remote() for _ in range(2)])
    start, began = time.perf_counter() - began, time.perf_counter()
    files = sorted(map(str, folder.glob("*.parquet")))
    rows = ray.data.read_parquet(files).select_columns([f"field:{field}"])
    counts = rows.groupby(f"field:{field}").count().to_pandas()
    seconds = time.perf_counter() - began
    ray.shutdown()
    return start, seconds, len(counts), int(counts["count()"].sum())


def spark(folder: Path, field: str) -> Found:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    began = time.perf_counter()
    session = SparkSession.builder.master("local[2]").config("spark.ui.enabled", False)
    session = session.config("spark.driver.memory", "3g").getOrCreate()
    session.range(10).count()
    start, began = time.perf_counter() - began, time.perf_counter()
    rows = session.read.parquet(*map(str, sorted(folder.glob("*.parquet"))))
    counts = rows.groupBy(f.col(f"`field:{field}`")).count()
    counts.write.parquet(str(folder / "spark"))
    found = session.read.parquet(str(folder / "spark")).agg(f.count("*"), f.sum("count")).first()
    seconds = time.perf_counter() - began
    session.stop()
    return start, seconds, int(found[0]), int(found[1])


ENGINES: dict[str, Callable[[Path, str], Found]] = {
    "here": here, "ray tasks": ray_tasks, "ray data": ray_data, "spark": spark
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--field", default="C3")
    parser.add_argument("--folder", type=Path, help="where to put the rows; default: temporary")
    parser.add_argument("--spark-python", help="a Python with pyspark; without it, no Spark")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ENGINES[options.one](options.folder, options.field)))
        return
    from criteo_text import write_criteo_text

    from mlet.data.readers import CriteoSource

    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        raw = Path(scratch) / "rows.txt"
        write_criteo_text(raw, options.rows)
        for place, frame in enumerate(CriteoSource([raw]).frames()):
            frame.write_parquet(Path(scratch) / f"{place:04d}.parquet")
        raw.unlink()
        counted = set()
        for engine in options.engines:
            python = sys.executable if engine != "spark" else options.spark_python
            if python is None:
                continue
            command = [python, __file__, "--one", engine, "--folder", scratch]
            done = subprocess.run(
                [*command, "--field", options.field], stdout=subprocess.PIPE, check=True
            )
            start, seconds, *found = json.loads(done.stdout.splitlines()[-1])
            counted.add(tuple(found))
            print(
                f"{engine}: {seconds:.1f} s to count {found[0]:,} categories of {options.rows:,} "
                f"rows, {start:.1f} s to start",
                flush=True,
            )
        if len(counted) != 1:
            sys.exit(f"the counts differ: {counted}")


if __name__ == "__main__":
    main()
