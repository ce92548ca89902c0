"""Served models as ONNX graphs."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mlet.atomic import atomic_path
from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError, ConversionError
from mlet.export.program import Exported, compared, traced
from mlet.export.raw import RawTable, compared_raw, with_raw_inputs
from mlet.export.serving import ServingModule, description, serving_module
from mlet.models import CTRModel
from mlet.nn.compression import Precision

#: Versions of ONNX's operators that a graph can be made of, and the one it is made of by default.
OPSETS, DEFAULT_OPSET = range(18, 24), 18
#: The same of graphs of raw values: patterns and splits of texts came with it.
RAW_OPSETS, DEFAULT_RAW_OPSET = range(20, 24), 20
#: What the extra "onnx" installs.
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
#: A file of protocol buffers is at most 2 GiB; the graph itself takes some of it.
_LARGEST = 2**31 - 2**24


def to_onnx(
    model: CTRModel,
    schema: DatasetSchema,
    path: Path,
    *,
    tables: Precision | None = None,
    opset: int | None = None,
    raw: bool = False,
    vocabularies: Mapping[str, pl.DataFrame] | None = None,
    int64: Collection[str] = (),
) -> Exported:
    """Write a model as one ONNX graph, all of it in one file.

    Tables of ``int8`` and ``int4`` stay codes in the file, of which the rows that are looked up are
    decoded. Inputs and output have the names of `ServingModule`; ids are int64. Of a ``raw`` graph
    the inputs are raw columns, which it scores as `mlet.Predictor` does: docs/serving.md has what
    they are.

    Args:
        model: as trained, or collapsed.
        schema: of the data it is for.
        path: the file to appear.
        tables: precision of its tables, see `serving_module`.
        opset: version of ONNX's operators; by default the least.
        raw: take raw values, with the vocabularies and the scalings in the graph.
        vocabularies: for ``raw``, of every field, as of `load_collapsed_model`.
        int64: for ``raw``, fields whose categories are given as integers, not as texts.

    Raises:
        ConfigError: an unknown precision or opset, a field of ``int64`` that holds no integers, or
            what concerns ``raw`` without it.
        ConversionError: the extra "onnx" is not installed, or the model cannot be exported so.
        RunError: the file cannot be written.
    """
    opset = _opset(opset, raw)
    if not raw and (vocabularies is not None or int64):
        what = "int64" if int64 else "vocabularies"
        raise ConfigError(f"{what} is for raw graphs; pass raw=True (--raw), or leave it out")
    if raw and vocabularies is None:
        raise ConversionError(
            "raw graphs hold vocabularies, of which there are none: give those of "
            "load_collapsed_model, of a file that mlet collapse RUN --out FILE wrote"
        )
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise ConversionError(f'ONNX files need {", ".join(missing)}: pip install "mlet[onnx]"')
    module = serving_module(model, schema, tables)
    table = None
    if raw and vocabularies is not None:
        table = RawTable(schema, vocabularies, int64, module.output)
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    size += 0 if table is None else table.nbytes
    if size > _LARGEST:
        raise ConversionError(
            f"{path}: a model of {size:,} bytes, and one ONNX file holds 2 GiB; choose a lower "
            f"precision of tables, or {'leave out --raw' if raw else '--to torch'}"
        )
    graph, told = _graph(module, opset), description(module, schema)
    if table is not None:
        graph = with_raw_inputs(graph, module, table)
        told |= {"inputs": [column.name for column in table.columns], "raw": table.description()}
    entry = graph.metadata_props.add()
    entry.key, entry.value = "mlet", json.dumps(told)
    with atomic_path(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
        run = _runtime(temporary)
        if table is not None:
            rows, difference = compared_raw(module, table, run)
        else:
            rows, difference = compared(module, lambda *given: run(_named(module, given)))
        inputs = tuple(told["inputs"])
        return Exported(inputs, module.output, rows, difference, temporary.stat().st_size)


def _opset(given: int | None, raw: bool) -> int:
    known, default = (RAW_OPSETS, DEFAULT_RAW_OPSET) if raw else (OPSETS, DEFAULT_OPSET)
    if given is None:
        return default
    if given not in known:
        of = " of raw graphs, whose texts earlier ones have no operators for" if raw else ""
        raise ConfigError(f"no opset {given}; there are {known[0]} to {known[-1]}{of}")
    return given


def _graph(module: ServingModule, opset: int) -> Any:
    """The model as ONNX's ``ModelProto``."""
    with _quietly():
        program = torch.onnx.export(
            traced(module),
            dynamo=True,
            opset_version=opset,
            input_names=module.inputs,
            output_names=[module.output],
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    _name_dimensions(graph.graph)
    for part in (graph.graph, *graph.graph.node):
        part.ClearField("metadata_props")  # what the exporter did
    graph.graph.ClearField("value_info")  # what any reader infers
    return graph


def _name_dimensions(graph: Any) -> None:
    """``batch`` rather than a symbol of torch's; of values ``<field>.values``."""
    names = {}
    for given in graph.input:
        symbol = given.type.tensor_type.shape.dim[0].dim_param
        names[symbol] = given.name if given.name.endswith(".values") else "batch"
    for value in (*graph.input, *graph.output):
        first = value.type.tensor_type.shape.dim[0]
        first.dim_param = names[first.dim_param]


def _named(module: ServingModule, inputs: Sequence[Tensor]) -> dict[str, Any]:
    return {name: t.numpy() for name, t in zip(module.inputs, inputs, strict=True)}


def _runtime(path: Path) -> Callable[[Mapping[str, Any]], Tensor]:
    """The file in ONNX Runtime, called with arrays by the inputs' names."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(given: Mapping[str, Any]) -> Tensor:
        return torch.from_numpy(session.run(None, given)[0])

    return run


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of itself: libraries it does without, its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
