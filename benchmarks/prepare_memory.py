"""Prepare a synthetic Criteo-shaped file and report time and peak memory.

    python benchmarks/prepare_memory.py --rows 10000000 --folder /somewhere/with/space

The peak is the resident memory of the ``mlet prepare`` process, as the system counts it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where to put several GB; default: temporary")
    options = parser.parse_args()
    mlet = Path(sys.executable).parent / "mlet"
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        raw = Path(scratch) / "train.txt"
        shape = ["--preset", "criteo", "--rows", str(options.rows), "--criteo-tsv"]
        subprocess.run([mlet, "synthesize", *shape, "--out", raw], check=True)
        size = raw.stat().st_size
        began = time.perf_counter()
        child = subprocess.Popen([mlet, "prepare", "criteo", raw, "--out", Path(scratch) / "d"])
        # wait4 gives the usage of this child alone, not the largest of all so far.
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
    if status:
        sys.exit("mlet prepare failed")
    print(
        f"{options.rows:,} rows ({size / 2**30:.2f} GiB) prepared in {seconds:.0f} s "
        f"({options.rows / seconds:,.0f} rows/s), peak memory {usage.ru_maxrss / 2**20:.2f} GiB"
    )


if __name__ == "__main__":
    main()
