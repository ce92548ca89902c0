"""Rows per second of ``mlet prepare criteo`` against FuxiCTR's preprocessing, on the same rows.

Synthetic Criteo-shaped text (label, 13 numbers, 26 categories), split 8 : 1 : 1. Both count
categories on the training split, number them, encode all splits and write columns. FuxiCTR gets
its splits as files with a header, as it wants them; making those is not timed. Each is a process of
its own, start to end, and they take turns.

    python benchmarks/prepare.py --rows 300000 --json prepare.json
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import environment, write_json

COLUMNS = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
MIN_COUNT = 2


def fuxictr(folder: Path) -> None:
    """FuxiCTR's own pipeline, as its ``run_expid.py`` calls it."""
    import polars
    from fuxictr.preprocess import FeatureProcessor
    from fuxictr.preprocess.build_dataset import build_dataset

    # FuxiCTR 2.3.10 calls an argument by the name it had before Polars 2.
    scan_csv = polars.scan_csv
    polars.scan_csv = lambda *args, dtypes, **kwargs: scan_csv(
        *args, schema_overrides=dtypes, **kwargs
    )
    processor = FeatureProcessor(
        feature_cols=[
            {"name": COLUMNS[1:14], "active": True, "dtype": "float", "type": "numeric"},
            {"name": COLUMNS[14:], "active": True, "dtype": "str", "type": "categorical"},
        ],
        label_col={"name": "label", "dtype": "float"},
        dataset_id="criteo",
        data_root=str(folder / "fuxictr"),
    )
    build_dataset(
        processor,
        train_data=str(folder / "train.csv"),
        valid_data=str(folder / "valid.csv"),
        test_data=str(folder / "test.csv"),
        sep="\t",
        min_categr_count=MIN_COUNT,
    )


def write_splits(raw: Path, rows: int) -> None:
    """Three files with a header from one without."""
    edges = {"train": rows * 8 // 10, "valid": rows * 9 // 10, "test": rows}
    with raw.open() as lines:
        done = 0
        for split, end in edges.items():
            with (raw.parent / f"{split}.csv").open("w") as out:
                out.write("\t".join(COLUMNS) + "\n")
                while done < end:
                    out.write(next(lines))
                    done += 1


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began


def measure(rows: int, rounds: int) -> dict[str, float]:
    """Rows per second, by contender."""
    mlet = str(Path(sys.executable).parent / "mlet")
    times: dict[str, list[float]] = {"mlet": [], "FuxiCTR": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        raw = folder / "raw.txt"
        shape = ["--preset", "criteo", "--rows", str(rows), "--criteo-tsv"]
        subprocess.run([mlet, "synthesize", *shape, "--out", raw], check=True, capture_output=True)
        write_splits(raw, rows)
        for turn in range(rounds):
            out = str(folder / f"mlet{turn}")
            times["mlet"].append(
                seconds(
                    [
                        mlet,
                        "prepare",
                        "criteo",
                        str(raw),
                        "--min-count",
                        str(MIN_COUNT),
                        "--out",
                        out,
                    ]
                )
            )
            theirs = folder / f"fuxictr{turn}"
            theirs.mkdir()
            for split in ("train", "valid", "test"):
                (theirs / f"{split}.csv").symlink_to(folder / f"{split}.csv")
            times["FuxiCTR"].append(seconds([sys.executable, __file__, "--fuxictr", str(theirs)]))
    return {name: rows / statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each")
    parser.add_argument("--fuxictr", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.fuxictr:
        return fuxictr(options.fuxictr)
    speeds = measure(options.rows, options.rounds)
    for name, speed in speeds.items():
        print(f"{name:8s} {speed:10,.0f} rows/s  ÷ FuxiCTR {speed / speeds['FuxiCTR']:.1f}")
    write_json(
        options.json,
        {
            "environment": environment("fuxictr", "polars"),
            "rows": options.rows,
            "rows_per_second": speeds,
        },
    )
    return None


if __name__ == "__main__":
    main()
