"""``mlet export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlet.cli.console import say
from mlet.errors import ConfigError, RunError
from mlet.export import to_onnx, to_torch
from mlet.export.onnx import DEFAULT_OPSET, OPSETS
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
            help=f"Of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]}. Default: {DEFAULT_OPSET}."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a model for other programs: dense features and ids in, probability out.

    The file runs without mlet, for batches of any number of rows; its scores on random rows are
    checked to be the model's. Tables of int8 and int4 stay codes in it.

    Example: mlet export RUN --to onnx -o model.onnx --tables int8
    """
    suffix = _SUFFIXES.get(to)
    if suffix is None:
        raise ConfigError(f"--to {to!r}: no such format; there are {', '.join(_SUFFIXES)}")
    if out.suffix != suffix:
        raise ConfigError(f"{out}: --to {to} writes {suffix} files; name it {out.stem}{suffix}")
    if opset is not None and to != "onnx":
        raise ConfigError(f"--opset is for --to onnx; leave it out with --to {to}")
    precision = _precision(tables)
    if out.exists() and not overwrite:
        raise RunError(f"{out} already exists: pass --overwrite or choose another file")
    found = load_served(model)
    if to == "onnx":
        done = to_onnx(
            found.model, found.schema, out, tables=precision, opset=opset or DEFAULT_OPSET
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
