"""What a model costs when it is served: latency, rows a second and memory, in every form it has.

DLRM with Criteo's 26 fields (up to --cap categories each) and 13 dense features. A single layer and
a collapsed MLET model of equal d, in torch, as a .pt2 program and as ONNX graphs at several
precisions; and the lookups alone. Contenders take turns on the same batches; peak memory is of a
process of its own, which loads the file and scores three batches.

    python benchmarks/serving.py --json serving.json     # about four minutes
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from timing import environment, interleaved_times, write_json
from torch import Tensor

from mlet.data import DatasetSchema
from mlet.data.schema import DenseSchema, FieldSchema
from mlet.data.synthetic import CRITEO_CARDINALITIES
from mlet.export import load_collapsed, save_collapsed, serving_module, to_onnx, to_torch
from mlet.models import CTRModel, DLRMConfig, build_model
from mlet.nn import FieldEmbedding
from mlet.nn.compression import Precision

Inputs = tuple[Tensor, Tensor]
#: What is timed, by its name.
Contenders = dict[str, Callable[[Inputs], object]]

BATCHES = (1, 64, 2_048)
LOOKUPS = (1, 64, 1_024)
_DENSE = 13
_ZIPF = 1.1

#: Load a file, score the batches in another; print the peak of resident memory.
ALONE = {
    ".safetensors": "from mlet.export import load_collapsed, serving_module\n"
    "model, _, schema = load_collapsed(path)\n"
    "module = serving_module(model, schema)\n"
    "del model\n"
    "score = lambda dense, ids: module(torch.from_numpy(dense), torch.from_numpy(ids))\n",
    ".pt2": "module = torch.export.load(path).module()\n"
    "score = lambda dense, ids: module(torch.from_numpy(dense), torch.from_numpy(ids))\n",
    ".onnx": "import onnxruntime\n"
    "session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])\n"
    "score = lambda dense, ids: session.run(None, {'dense': dense, 'ids': ids})\n",
}


def schema_of(sizes: list[int]) -> DatasetSchema:
    fields = [
        FieldSchema(
            name=f"C{place}", num_categories=n, multi_valued=False, min_count=1, total_categories=n
        )
        for place, n in enumerate(sizes, start=1)
    ]
    dense = [DenseSchema(name=f"I{place}", scale="log") for place in range(1, _DENSE + 1)]
    return DatasetSchema(
        source="Criteo's shape", split_by="order", seed=0, dense=dense, fields=fields, splits={}
    )


def batches(sizes: list[int], rows: int, count: int) -> Iterator[Inputs]:
    """Dense features and Zipf-distributed ids (int64)."""
    generator = np.random.default_rng(rows)
    for _ in range(count):
        ranks = generator.zipf(_ZIPF, size=(rows, len(sizes))) - 1
        ids = torch.from_numpy(ranks % np.array(sizes))
        yield torch.from_numpy(generator.standard_normal((rows, _DENSE), np.float32)), ids


def session(path: Path, threads: int) -> Callable[[Inputs], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    loaded = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> object:
        dense, ids = inputs
        return loaded.run(None, {"dense": dense.numpy(), "ids": ids.numpy()})

    return run


def torch_module(module: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], object]:
    def run(inputs: Inputs) -> object:
        with torch.inference_mode():
            return module(*inputs)

    return run


def files_of(model: CTRModel, config: DLRMConfig, schema: DatasetSchema, folder: Path) -> None:
    """A model in all the forms that are measured."""
    folder.mkdir()
    save_collapsed(model, config, schema, folder / "eager.safetensors")
    to_torch(model, schema, folder / "program.pt2")
    precisions: tuple[Precision, ...] = ("float32", "float16", "int8", "int4")
    for precision in precisions:
        to_onnx(model, schema, folder / f"{precision}.onnx", tables=precision)


def contenders_of(folder: Path, kind: str, threads: int) -> tuple[Contenders, dict[str, Path]]:
    """The forms of one model, and the file that each comes from."""
    model, _, schema = load_collapsed(folder / "eager.safetensors")
    program = torch.export.load(folder / "program.pt2").module()
    found: Contenders = {
        f"torch, {kind}": torch_module(serving_module(model, schema)),
        f".pt2, {kind}": torch_module(program),
        f"ONNX Runtime, {kind}": session(folder / "float32.onnx", threads),
    }
    files = ["eager.safetensors", "program.pt2", "float32.onnx"]
    if kind == MLET:  # what a precision costs does not depend on where the table came from
        for precision in ("float16", "int8", "int4"):
            name = f"ONNX Runtime, {kind}, {precision}"
            found[name] = session(folder / f"{precision}.onnx", threads)
            files.append(f"{precision}.onnx")
    return found, {name: folder / file for name, file in zip(found, files, strict=True)}


SLT, MLET = "single layer", "collapsed MLET"


def lookups_of(embedding: FieldEmbedding, sizes: list[int], dim: int) -> Contenders:
    """The tables alone: served, one ``nn.Embedding`` of all rows, and as if to be trained."""
    table = torch.nn.Embedding(sum(sizes), dim)
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)

    def plain(inputs: Inputs) -> object:
        with torch.inference_mode():
            return table(inputs[1] + starts)

    def served(inputs: Inputs) -> object:
        with torch.inference_mode():
            return embedding(inputs[1])

    return {
        "nn.Embedding": plain,
        "FieldEmbedding, served": served,
        "FieldEmbedding, where gradients are asked": lambda inputs: embedding(inputs[1]),
    }


def timed(
    part: str, contenders: Contenders, sizes: list[int], rows: int, rounds: int
) -> list[dict[str, Any]]:
    """p50 and p99 (microseconds) and rows a second of each."""
    times = interleaved_times(contenders, batches(sizes, rows, rounds + 3))
    found = []
    for name, values in times.items():
        p50, p99 = (1e3 * float(np.percentile(values, q)) for q in (50, 99))
        speed = 1e3 * rows * len(values) / sum(values)
        found.append(
            {"part": part, "name": name, "batch": rows, "p50_us": p50, "p99_us": p99,
             "rows_per_second": speed}
        )  # fmt: skip
    return found


def peak(path: Path, sizes: list[int], rows: int, threads: int) -> int:
    """Peak resident memory, in bytes, of a process that serves a file."""
    given = path.with_suffix(".npz")
    dense, ids = zip(*batches(sizes, rows, 3), strict=True)
    np.savez(given, dense=torch.stack(dense).numpy(), ids=torch.stack(ids).numpy())
    imports = "" if path.suffix == ".onnx" else f"import torch\ntorch.set_num_threads({threads})\n"
    code = (
        f"import sys, numpy\n{imports}path = sys.argv[1]\n{ALONE[path.suffix]}"
        "given = numpy.load(sys.argv[2])\n"
        "for dense, ids in zip(given['dense'], given['ids']): score(dense, ids)\n"
        "status = open('/proc/self/status').read()\n"
        "print(1024 * int(status.split('VmHWM:')[1].split()[0]))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, path, given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    sizes = [min(size, options.cap) for size in CRITEO_CARDINALITIES]
    schema = schema_of(sizes)
    contenders: Contenders = {}
    files: dict[str, Path] = {}
    for kind, k in ((SLT, None), (MLET, options.inner_dim)):
        config = DLRMConfig(dim=options.dim, inner_dim=k)
        torch.manual_seed(0)
        files_of(build_model(config, schema), config, schema, scratch / kind)
        more, theirs = contenders_of(scratch / kind, kind, options.threads)
        contenders.update(more)
        files.update(theirs)
    rows = []
    for batch in BATCHES:
        rounds = max(options.rounds // 10, 3) if batch == BATCHES[-1] else options.rounds
        rows += timed("model", contenders, sizes, batch, rounds)
    embedding = load_collapsed(scratch / MLET / "eager.safetensors")[0].embedding
    for batch in LOOKUPS:
        lookups = lookups_of(embedding, sizes, options.dim)
        rows += timed("lookups", lookups, sizes, batch, options.rounds)
    memory = [
        {
            "name": name,
            "file_bytes": path.stat().st_size,
            "peak_bytes": peak(path, sizes, BATCHES[-1], options.threads),
        }
        for name, path in files.items()
    ]
    return {"rows": rows, "memory": memory, "ratios": ratios(rows)}


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median of collapsed MLET over that of a single layer, form by form."""
    p50 = {(row["name"], row["batch"]): row["p50_us"] for row in rows if row["part"] == "model"}
    return [
        {"form": name.removesuffix(f", {SLT}"), "batch": batch,
         "ratio": p50[name.replace(SLT, MLET), batch] / value}
        for (name, batch), value in p50.items()
        if name.endswith(SLT)
    ]  # fmt: skip


def show(found: Mapping[str, Any]) -> None:
    for part in ("model", "lookups"):
        table = Table(title=part, title_justify="left")
        for column in ("contender", "batch", "p50, µs", "p99, µs", "rows/s"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for row in found["rows"]:
            if row["part"] == part:
                numbers = (row["p50_us"], row["p99_us"], row["rows_per_second"])
                cells = [f"{number:,.0f}" for number in numbers]
                table.add_row(row["name"], f"{row['batch']:,}", *cells)
        Console(width=110).print(table)
    table = Table(title="memory", title_justify="left")
    for column in ("contender", "file, MiB", "peak, MiB"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in found["memory"]:
        sizes = [f"{row[key] / 2**20:,.1f}" for key in ("file_bytes", "peak_bytes")]
        table.add_row(row["name"], *sizes)
    Console(width=110).print(table)
    shown = (f"{r['form']} {r['batch']:,}: {r['ratio']:.2f}" for r in found["ratios"])
    print(f"{MLET} ÷ {SLT}, p50: {'; '.join(shown)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cap", type=int, default=200_000, help="largest table")
    parser.add_argument("--dim", type=int, default=16, help="embedding dimension d")
    parser.add_argument("--inner-dim", type=int, default=64, help="k of the MLET model")
    parser.add_argument(
        "--rounds", type=int, default=2_000, help="timed calls; a tenth of it of the largest batch"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch and of ONNX Runtime")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, Path(scratch))
    show(found)
    about = environment("onnx", "onnxruntime")
    write_json(options.json, {"environment": about, **found})


if __name__ == "__main__":
    main()
