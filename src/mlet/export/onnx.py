"""Served models as ONNX graphs."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlet.atomic import atomic_path
from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError, ConversionError
from mlet.export.program import Exported, compared, traced
from mlet.export.serving import ServingModule, description, serving_module
from mlet.models import CTRModel
from mlet.nn.compression import Precision

#: Versions of ONNX's operators that a graph can be made of, and the one it is made of by default.
OPSETS, DEFAULT_OPSET = range(18, 24), 18
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
    opset: int = DEFAULT_OPSET,
) -> Exported:
    """Write a model as one ONNX graph, all of it in one file.

    Tables of ``int8`` and ``int4`` stay codes in the file, of which the rows that are looked up are
    decoded. Inputs and output have the names of `ServingModule`; ids are int64.

    Args:
        model: as trained, or collapsed.
        schema: of the data it is for.
        path: the file to appear.
        tables: precision of its tables, see `serving_module`.
        opset: version of ONNX's operators.

    Raises:
        ConfigError: an unknown precision or opset.
        ConversionError: the extra "onnx" is not installed, or the model cannot be exported so.
        RunError: the file cannot be written.
    """
    if opset not in OPSETS:
        raise ConfigError(f"no opset {opset}; there are {OPSETS[0]} to {OPSETS[-1]}")
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise ConversionError(f'ONNX files need {", ".join(missing)}: pip install "mlet[onnx]"')
    module = serving_module(model, schema, tables)
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size > _LARGEST:
        raise ConversionError(
            f"{path}: a model of {size:,} bytes, and one ONNX file holds 2 GiB; choose a lower "
            f"precision of tables, or --to torch"
        )
    graph = _graph(module, opset)
    entry = graph.metadata_props.add()
    entry.key, entry.value = "mlet", json.dumps(description(module, schema))
    with atomic_path(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
        rows, difference = compared(module, _runtime(temporary, module))
        return Exported(module.inputs, module.output, rows, difference, temporary.stat().st_size)


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


def _runtime(path: Path, module: ServingModule) -> Any:
    """The file in ONNX Runtime, called as the module is."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        given = {name: t.numpy() for name, t in zip(module.inputs, inputs, strict=True)}
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
