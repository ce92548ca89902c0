"""What the campaign works on: raw files, settings, data sets, runs and studies, small and whole."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

#: Of every model: small, and one of those that need nothing beyond themselves.
MODEL = ("--model", "fm", "--dim", "2", "--inner-dim", "4", "--batch-size", "64")
ONE_EPOCH = (*MODEL, "--epochs", "1")
COMPARE = (
    "--model", "fm", "--dims", "2,4", "--inner-dims", "8", "--seeds", "2", "--epochs", "1",
    "--batch-size", "64", "--learning-rates", "0.02,0.08", "--jobs", "1",
)  # fmt: skip


def make_workshop(folder: Path) -> None:
    """Fill a folder, in a process of its own: Polars' and torch's threads would survive no fork."""
    made = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def _make(folder: Path) -> None:
    os.chdir(folder)
    chance = random.Random(0)
    _write_raw(chance)
    _write_settings()
    _make_data_and_runs()


def _write_raw(chance: random.Random) -> None:
    import polars as pl

    rows = [
        (
            chance.randrange(2),
            f"u{chance.randrange(40)}",
            "|".join("abcd"[: chance.randrange(4)]),
            chance.randrange(90),
        )
        for _ in range(900)
    ]
    lines = "\n".join(["click,user,tags,price", *(",".join(map(str, row)) for row in rows)])
    Path("raw.csv").write_text(lines)
    Path("raw.csv.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    pl.DataFrame(rows, ["click", "user", "tags", "price"], orient="row").write_parquet(
        "raw.parquet"
    )
    Path("criteo.tsv").write_text(
        "".join(
            "\t".join(
                [
                    str(chance.randrange(2)),
                    *(chance.choice(["", str(chance.randrange(50))]) for _ in range(13)),
                    *(chance.choice(["", f"{chance.randrange(30):08x}"]) for _ in range(26)),
                ]
            )
            + "\n"
            for _ in range(300)
        )
    )
    Path("avazu.csv").write_text(
        "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,"
        "app_category,device_id,device_ip,device_model,device_type,device_conn_type,"
        + ",".join(f"C{place}" for place in range(14, 22))
        + "\n"
        + "".join(
            f"{row},{chance.randrange(2)},1410{21 + row // 100}{row % 24:02d},"
            + ",".join(f"{chance.randrange(12):x}" for _ in range(21))
            + "\n"
            for row in range(400)
        )
    )
    Path("frappe.libfm").write_text(
        "".join(
            f"{chance.choice([-1, 1])} {chance.randrange(20)}:1 {20 + chance.randrange(9)}:1\n"
            for _ in range(400)
        )
    )
    Path("films").mkdir()
    Path("films/movies.csv").write_text(
        "movieId,title,genres\n"
        + "".join(
            f'{film},"Film, The {film} ({1990 + film})",Drama|Comedy\n' for film in range(1, 20)
        )
    )
    Path("films/ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n"
        + "".join(
            f"{chance.randrange(1, 30)},{chance.randrange(1, 20)},{chance.randrange(1, 11) / 2},"
            f"{1_000_000_000 + row * 3600}\n"
            for row in range(400)
        )
    )


def _write_settings() -> None:
    Path("schema.yaml").write_text(
        "label: click\ncategorical: [user]\nmulti_valued: {tags: '|'}\ndense: [price]\n"
    )
    Path("run.yaml").write_text(
        "model: {name: fm, dim: 2, inner_dim: 4}\n"
        "training: {epochs: 1, batch_size: 64, threads: 1}\n"
        "optimizer: {tables: {name: adagrad, learning_rate: 0.04}}\n"
    )
    Path("study.yaml").write_text(
        "datasets:\n"
        "  made: {synthetic: {rows: 600}, test: 0.2}\n"
        "  mine: {format: table, files: [raw.csv], schema_file: schema.yaml, split: random}\n"
        "models: {fm: {}}\n"
        "optimizers:\n"
        "  adagrad:\n"
        "    tables: {name: adagrad, learning_rate: 0.04}\n"
        "    dense: {name: adagrad, learning_rate: 0.04}\n"
        "dims: [2, 4]\n"
        "inner_dims: [8]\n"
        "seeds: 2\n"
        "tuning: {trials: 2, span: 4}\n"
        "training: {epochs: 1, batch_size: 64}\n"
    )


def _make_data_and_runs() -> None:
    import torch

    from mlet import cli, convert
    from mlet.training import RunConfig, train
    from mlet.training.collapse import collapse_run
    from mlet.training.observer import SilentObserver

    class Stop(SilentObserver):
        steps = 0

        def step(self, loss: float, rows: int) -> None:
            self.steps += 1
            if self.steps == 8:
                raise KeyboardInterrupt

    def mlet(*words: str) -> None:
        with contextlib.suppress(SystemExit):
            cli.app(list(words))

    mlet(
        "prepare", "table", "raw.csv", "--schema", "schema.yaml", "--out", "data",
        "--split", "random",
    )  # fmt: skip
    values = {
        "data": "data",
        "model": {"name": "fm", "dim": 2, "inner_dim": 4},
        "training": {"epochs": 1, "batch_size": 64, "threads": 1, "record_spectra": True},
    }
    config = RunConfig.parse(values, "campaign")
    train(config, Path("run"))
    with contextlib.suppress(KeyboardInterrupt):
        train(config, Path("cut"), Stop())
    collapse_run(Path("run"), Path("model.safetensors"))
    model = convert(torch.nn.Sequential(torch.nn.Embedding(30, 2)), 4)
    torch.save({"state_dict": model.state_dict()}, "any.pt")
    mlet("compare", "data", "--out", "compared", *COMPARE)
    mlet("sweep", "study.yaml", "--out", "swept", "--jobs", "1")
    for out in ("compared/compare.json", "swept/study.json"):
        assert json.loads(Path(out).read_text()), out


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
