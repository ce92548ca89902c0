"""Prepare files of Criteo's shape and report time, peak memory and the number of categories.

    python benchmarks/prepare_memory.py --rows 1000000 10000000 50000000 --folder /somewhere/large

The peak is the resident memory of the ``mlet prepare`` process, as the system counts it. A file of
50 million rows has 12 GB; with what is prepared of it, up to 28 GB are needed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from criteo_text import write_criteo_text

from mlet.data import PreparedDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--folder", type=Path, help="where to put several GB; default: temporary")
    parser.add_argument("--option", action="append", default=[], help="of mlet prepare; repeatable")
    options = parser.parse_args()
    for rows in options.rows:
        measure(rows, options.folder, options.option)


def measure(rows: int, folder: Path | None, more: list[str]) -> None:
    """Prepare so many rows, and print what it took."""
    mlet = Path(sys.executable).parent / "mlet"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        raw, out = Path(scratch) / "train.txt", Path(scratch) / "data"
        write_criteo_text(raw, rows)
        size = raw.stat().st_size
        began = time.perf_counter()
        child = subprocess.Popen([mlet, "prepare", "criteo", raw, "--out", out, *more])
        # wait4 gives the usage of this child alone, not the largest of all so far.
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            sys.exit("mlet prepare failed")
        categories = PreparedDataset(out).schema.num_categories
    print(
        f"{rows:,} rows ({size / 2**30:.2f} GiB, {categories:,} categories in training) prepared "
        f"in {seconds:.0f} s ({rows / seconds:,.0f} rows/s; {usage.ru_utime + usage.ru_stime:.0f} "
        f"s of processor time), peak memory {usage.ru_maxrss / 2**20:.2f} GiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
