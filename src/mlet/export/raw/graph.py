"""A model's graph behind what makes its inputs of raw values."""

from __future__ import annotations

from typing import Any

from mlet.export.raw.categories import bag_nodes, id_nodes
from mlet.export.raw.columns import RawColumn, RawTable
from mlet.export.raw.dense import dense_nodes
from mlet.export.raw.nodes import ML_DOMAIN, ML_OPSET, Nodes
from mlet.export.serving import ServingModule


def with_raw_inputs(model: Any, module: ServingModule, table: RawTable) -> Any:
    """The ``ModelProto`` of a module, with the raw columns of a table for inputs."""
    from onnx import compose, helper

    names = [column.name for column in table.columns]
    prefix = "mlet."
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    inner = f"{prefix}model."
    compose.add_prefix(model, inner, inplace=True)
    nodes = Nodes(f"{prefix}raw.")
    encoding_nodes(nodes, table, inner)
    graph = model.graph
    of_model = list(graph.node)
    outputs = [nodes.add("Identity", f"{inner}{module.output}", output=module.output)]
    last = nodes.nodes.pop()
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes.nodes, *of_model, last])
    graph.initializer.extend(nodes.constants)
    graph.input.extend(declared(column) for column in table.columns)
    graph.output[0].name = outputs[0]
    model.opset_import.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))
    return model


def encoding_nodes(nodes: Nodes, table: RawTable, inner: str) -> None:
    """What makes the inputs of a `ServingModule`, named as they are behind ``inner``."""
    checks: list[str] = []
    if table.schema.dense:
        dense, checks = dense_nodes(nodes, table)
        nodes.add("Identity", dense, output=f"{inner}dense")
    ids, more = id_nodes(nodes, table)
    checks += more
    bags = [field.name for field in table.schema.multi_valued]
    lengths = []
    for name in bags:
        values, of_rows = bag_nodes(nodes, table, name)
        nodes.add("Identity", values, output=f"{inner}{name}.values")
        lengths.append(of_rows)
    # Side by side, so that inputs of different numbers of rows are refused, and checks are made.
    together = nodes.columns([*ids, *lengths, *checks])
    if ids:
        end = nodes.constant([len(ids)])
        start, axis = nodes.constant([0]), nodes.constant([1])
        nodes.add("Slice", together, start, end, axis, output=f"{inner}ids")
    for place, name in enumerate(bags, start=len(ids)):
        column = nodes.constant(place)
        nodes.add("Gather", together, column, axis=1, output=f"{inner}{name}.lengths")


def declared(column: RawColumn) -> Any:
    """An input as a graph declares it."""
    from onnx import TensorProto, helper

    types = {
        "number": TensorProto.DOUBLE,
        "integer": TensorProto.INT64,
        "text": TensorProto.STRING,
        "texts": TensorProto.STRING,
    }
    shape = ["batch", f"{column.name}.width"] if column.kind == "texts" else ["batch"]
    return helper.make_tensor_value_info(column.name, types[column.kind], shape)
