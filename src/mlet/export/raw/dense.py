"""Dense features in a graph: scaled as `mlet.data.scaling` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlet.data.schema import DenseSchema
from mlet.export.raw.columns import RawTable
from mlet.export.raw.nodes import Nodes


def dense_nodes(nodes: Nodes, table: RawTable) -> tuple[str, list[str]]:
    """The dense features (B, D), float32, and what refuses values, as of `Nodes.refuse`."""
    schema = table.schema
    raw = [feature.name for feature in schema.raw_dense]
    values = nodes.columns([nodes.column(name) for name in raw])
    missing = nodes.add("IsNaN", values)
    for number in table.missing_numbers:
        stands = nodes.add("Equal", values, nodes.constant([number]))
        missing = nodes.add("Or", missing, stands)
    filled = nodes.add("Where", missing, nodes.constant([0.0]), values)
    infinite = nodes.refuse(nodes.add("IsInf", filled), "a dense feature is infinite")
    refused = [infinite, *_never_missing(nodes, schema.raw_dense, missing)]
    parts, order = [], []
    for scale in dict.fromkeys(entry.scale for entry in schema.dense):
        entries = [(place, e) for place, e in enumerate(schema.dense) if e.scale == scale]
        columns = [raw.index(entry.of or entry.name) for _, entry in entries]
        alone = columns == list(range(len(raw)))
        of, gone = (m if alone else nodes.some(m, columns) for m in (filled, missing))
        scaled = _scaled(nodes, [entry for _, entry in entries], of, gone)
        parts.append(nodes.cast(scaled, "FLOAT"))
        order += [place for place, _ in entries]
    dense = nodes.columns(parts)
    if order != sorted(order):
        dense = nodes.some(dense, np.argsort(order).tolist())
    too_large = "a dense feature is too large for float32"
    refused.append(nodes.refuse(nodes.add("IsInf", dense), too_large))
    return dense, refused


def _never_missing(nodes: Nodes, features: Sequence[DenseSchema], missing: str) -> list[str]:
    """Refuses what is missing of features that always were there in training."""
    there = [(at, f.name) for at, f in enumerate(features) if f.missing_in_training is False]
    if not there:
        return []
    places, names = zip(*there, strict=True)
    why = f"a dense feature is missing or NaN that never was in training, of: {', '.join(names)}"
    return [nodes.refuse(nodes.some(missing, places), why)]


def _scaled(nodes: Nodes, entries: Sequence[DenseSchema], filled: str, missing: str) -> str:
    """Columns of one scale, double but for ``missing``."""
    match entries[0].scale:
        case "none":
            return filled
        case "missing":
            return missing
        case "log":
            return _log1p(nodes, nodes.add("Max", filled, nodes.constant([0.0])))
        case "signed_log":
            size = _log1p(nodes, nodes.add("Abs", filled))
            return nodes.add("Mul", nodes.add("Sign", filled), size)
        case "standard":
            means = nodes.constant([entry.mean or 0.0 for entry in entries])
            deviations = nodes.constant([entry.deviation or 1.0 for entry in entries])
            scaled = nodes.add("Div", nodes.add("Sub", filled, means), deviations)
            return nodes.add("Where", missing, nodes.constant([0.0]), scaled)
        case "quantile":
            ranks = _ranks(nodes, np.array([entry.quantiles for entry in entries]), filled)
            scaled = nodes.add("Mul", ranks, nodes.constant([2.0]))
            scaled = nodes.add("Sub", scaled, nodes.constant([1.0]))
            return nodes.add("Where", missing, nodes.constant([0.0]), scaled)


def _log1p(nodes: Nodes, values: str) -> str:
    return nodes.add("Log", nodes.add("Add", values, nodes.constant([1.0])))


def _ranks(nodes: Nodes, quantiles: np.ndarray, values: str) -> str:
    """Ranks (B, D) of values among quantiles (D, Q), as `mlet.data.scaling` has them."""
    count = quantiles.shape[1]
    share = nodes.constant([1 / (count - 1)])
    one, each = nodes.constant([1.0]), nodes.constant(quantiles)
    against = nodes.add("Unsqueeze", values, nodes.constant([2]))

    def how_many(comparison: str) -> str:
        """Quantiles below a value, or up to it."""
        found = nodes.cast(nodes.add(comparison, against, each), "DOUBLE")
        return nodes.add("ReduceSum", found, nodes.constant([2]), keepdims=0)

    below, up_to = how_many("Greater"), how_many("GreaterOrEqual")
    # A value that is a quantile, or several, is in the middle of them.
    middle = nodes.add("Sub", nodes.add("Add", below, up_to), one)
    middle = nodes.add("Mul", middle, nodes.constant([0.5]))
    # Others are between two.
    left = nodes.add("Sub", below, one)
    left = nodes.add("Clip", left, nodes.constant(0.0), nodes.constant(count - 2.0))
    starts = nodes.constant(np.arange(len(quantiles)) * count)
    places = nodes.add("Add", nodes.cast(left, "INT64"), starts)
    flat = nodes.constant(quantiles.ravel())
    low = nodes.add("Gather", flat, places)
    high = nodes.add("Gather", flat, nodes.add("Add", places, nodes.constant([1])))
    within = nodes.add("Div", nodes.add("Sub", values, low), nodes.add("Sub", high, low))
    within = nodes.add("Clip", within, nodes.constant(0.0), nodes.constant(1.0))
    between = nodes.add("Add", left, within)
    is_one = nodes.add("Less", below, up_to)
    return nodes.add("Mul", nodes.add("Where", is_one, middle, between), share)
