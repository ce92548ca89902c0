"""``mlet export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlet.cli.console import say
from mlet.errors import ConfigError, RunError
from mlet.export import to_onnx, to_torch
from mlet.export.onnx import DEFAULT_OPSET, DEFAULT_RAW_OPSET, OPSETS, RAW_OPSETS
from mlet.nn.compression import PRECISIONS, Precision
from mlet.reporting.text import human_bytes
from mlet.training.load import load_served

#: How files of a format are named.
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def export(
    model: Annotated[Path, typer.Argument(help="Run directory or collapsed .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .onnx or .pt2.")],
    to: Annotated[
        str, typer.Option(help="onnx, for ONNX Runtime and servers; or torch, for torch.export.")
    ] = "onnx",
    tables: Annotated[
        str | None,
        typer.Option(
            help=f"Precision of the tables: {', '.join(PRECISIONS)}. Default: the model's."
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            help=f"Of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]}, {RAW_OPSETS[0]} to "
            f"{RAW_OPSETS[-1]} with --raw. Default: {DEFAULT_OPSET}, {DEFAULT_RAW_OPSET}."
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Take raw values, a column each: vocabularies and scalings are in the graph.",
        ),
    ] = False,
    int64: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="With --raw: take this field's categories as integers, not texts. Repeatable.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a model for other programs: dense features and ids in, probability out.

    The file runs without mlet, for batches of any number of rows; its scores on random rows are
    checked to be the model's. Tables of int8 and int4 stay codes in it. With **--raw** the inputs
    are the columns of raw rows: categories by name, dense features unscaled.

    Example: mlet export RUN --to onnx -o model.onnx --tables int8
    """
    suffix = _SUFFIXES.get(to)
    if suffix is None:
        raise ConfigError(f"--to {to!r}: no such format; there are {', '.join(_SUFFIXES)}")
    if out.suffix != suffix:
        raise ConfigError(f"{out}: --to {to} writes {suffix} files; name it {out.stem}{suffix}")
    if opset is not None and to != "onnx":
        raise ConfigError(f"--opset is for --to onnx; leave it out with --to {to}")
    if raw and to != "onnx":
        raise ConfigError(
            f"--raw is for --to onnx: a program of torch takes tensors, which hold no texts; leave "
            f"it out with --to {to}, or score raw rows with mlet predict"
        )
    if int64 and not raw:
        raise ConfigError(f"--int64 {int64[0]!r} is for --raw; pass --raw, or leave it out")
    precision = _precision(tables)
    if out.exists() and not overwrite:
        raise RunError(f"{out} already exists: pass --overwrite or choose another file")
    found = load_served(model)
    if to == "onnx":
        if raw and found.vocabularies is None:
            raise RunError(
                f"{model}: holds no vocabularies, as models of earlier versions of mlet, so --raw "
                f"cannot be; write it again with mlet collapse RUN --out FILE"
            )
        done = to_onnx(
            found.model,
            found.schema,
            out,
            tables=precision,
            opset=opset,
            raw=raw,
            vocabularies=found.vocabularies if raw else None,
            int64=int64 or (),
        )
    else:
        done = to_torch(found.model, found.schema, out, tables=precision)
    difference = f"{done.largest_difference:.1e} on {done.rows} random rows"
    say(
        f"{', '.join(done.inputs)} -> {done.output}; largest difference from the model's scores "
        f"{difference}; {human_bytes(done.bytes)} -> {out}"
    )


def _precision(given: str | None) -> Precision | None:
    for precision in PRECISIONS:
        if given == precision:
            return precision
    if given is None:
        return None
    raise ConfigError(f"--tables {given!r}: no such precision; there are {', '.join(PRECISIONS)}")
