"""What it costs to check a prepared data set's files, beside one pass over its training rows.

    python benchmarks/checksums.py --rows 1000000

Both read from the page cache, as the second command on a data set does; in one process they take
turns. A process checks every file once, when it first reads it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from timing import interleave

from mlet.data import BatchLoader, PreparedDataset, prepare
from mlet.data.checksums import checksums
from mlet.data.synthetic import SyntheticConfig, SyntheticSource


def measure(data: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of either, medians of interleaved rounds; and megabytes a second."""
    train = PreparedDataset(data).split("train")
    size = sum(file.stat().st_size for file in (data / "train").rglob("*") if file.is_file())

    def one_pass(seed: int) -> None:
        for _ in BatchLoader(train, 2048, seed).epoch(0):
            pass

    times = interleave(
        {"checksums": lambda _: checksums(data / "train"), "one pass": one_pass}, range(rounds)
    )
    return {
        "checksums_ms": times["checksums"],
        "one_pass_ms": times["one pass"],
        "ratio": times["checksums"] / times["one pass"],
        "megabytes": size / 1e6,
        "megabytes_per_second": size / 1e3 / times["checksums"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "d"
        prepare(SyntheticSource(SyntheticConfig(rows=options.rows)), data)
        print(json.dumps(measure(data, options.rounds), indent=2))


if __name__ == "__main__":
    main()
