"""Served models as programs of ``torch.export``, which run without mlet."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from mlet.atomic import atomic_path
from mlet.data.schema import DatasetSchema
from mlet.errors import ConversionError
from mlet.export.serving import ServingModule, description, serving_module
from mlet.models import CTRModel
from mlet.nn.compression import Precision

#: Rows of the batch that is traced, and of the one on which scores are compared.
_TRACED_ROWS, CHECKED_ROWS = 3, 257
#: What a program says of the code that it was traced from: where that lay, for one.
_OF_THE_SOURCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")
#: How far scores of a program may be from the model's.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        inputs, output: names, as of `ServingModule`.
        rows: random rows on which the file's scores were compared with the model's.
        largest_difference: between them.
        bytes: of the file.
    """

    inputs: tuple[str, ...]
    output: str
    rows: int
    largest_difference: float
    bytes: int


def to_torch(
    model: CTRModel, schema: DatasetSchema, path: Path, *, tables: Precision | None = None
) -> Exported:
    """Write a model as a program for ``torch.export.load``.

    Args:
        model: as trained, or collapsed.
        schema: of the data it is for.
        path: the file to appear; torch expects ``.pt2``.
        tables: precision of its tables, see `serving_module`.

    Raises:
        ConfigError, ConversionError: it cannot be exported as asked.
        RunError: the file cannot be written.
    """
    module = serving_module(model, schema, tables)
    program = traced(module)
    told = {"mlet": json.dumps(description(module, schema))}
    with atomic_path(path, failures=(RuntimeError,)) as temporary:
        with temporary.open("wb") as file:
            torch.export.save(program, file, extra_files=told)
        rows, difference = compared(module, program.module())
        return Exported(module.inputs, module.output, rows, difference, temporary.stat().st_size)


def traced(module: ServingModule) -> ExportedProgram:
    """The program of a module, for batches of any number of rows and bags of any length."""
    batch = Dim("batch", min=1)
    shapes = [
        {0: Dim(f"values{place}", min=0) if name.endswith(".values") else batch}
        for place, name in enumerate(module.inputs)
    ]
    inputs = module.random_inputs(_TRACED_ROWS)
    program = torch.export.export(module, inputs, dynamic_shapes=(tuple(shapes),))
    for node in program.graph.nodes:
        for told in _OF_THE_SOURCE:
            node.meta.pop(told, None)
    return program


def compared(
    module: ServingModule, exported: Callable[..., Tensor | Sequence[Tensor]]
) -> tuple[int, float]:
    """On how many random rows an exported form was compared, and the largest difference.

    Raises:
        ConversionError: it does not score as the module does.
    """
    inputs = module.random_inputs(CHECKED_ROWS, seed=1)
    expected = module(*inputs)
    return len(expected), difference_of(expected, torch.as_tensor(exported(*inputs)))


def difference_of(expected: Tensor, found: Tensor) -> float:
    """The largest difference of scores from the model's.

    Raises:
        ConversionError: it is more than rounding makes.
    """
    difference = float((found - expected).abs().max())
    if not difference <= _TOLERANCE:  # nor NaN
        raise ConversionError(
            f"the exported model's scores differ from the model's by {difference:.1e}; it was not "
            f"written: please report this, with the versions of torch and ONNX Runtime"
        )
    return difference
