"""Subclasses of torch's tables, for which the caller vouches, with two layers underneath."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from torch import nn

from mlet.nn import Embedding, EmbeddingBag
from mlet.nn.factored import INNER, PROJECTION, WEIGHT, collapse_table
from mlet.nn.two_layer import TwoLayerTable
from mlet.surgery.modules import OF_TWO_LAYERS

Table = nn.Embedding | nn.EmbeddingBag

#: Containers of a module that a copy has of its own.
_CONTAINERS = ("_parameters", "_buffers", "_modules")


class _UnderEmbedding(Embedding, nn.Embedding):  # type: ignore[override]
    """What a subclass of ``nn.Embedding`` finds where it calls ``super()``."""


class _UnderBag(EmbeddingBag, nn.EmbeddingBag):  # type: ignore[misc, override]
    """What a subclass of ``nn.EmbeddingBag`` finds where it calls ``super()``."""


@cache
def _class_of(kind: Any) -> type[TwoLayerTable]:
    """The user's class with two layers between it and torch's: its ``super().forward`` is ours."""
    under = _UnderEmbedding if issubclass(kind, nn.Embedding) else _UnderBag

    def collapse(self: Any) -> nn.Module:
        return _plain(self, kind)

    def __reduce__(self: Any) -> tuple[Any, ...]:
        return _empty, (kind,), self.__getstate__()

    body = {"collapse": collapse, "__reduce__": __reduce__, "__module__": kind.__module__}
    return cast("type[TwoLayerTable]", type(f"TwoLayer{kind.__name__}", (kind, under), body))


def under_subclass(table: Table, layer: TwoLayerTable) -> TwoLayerTable:
    """The layer as an instance of the table's own class, with all that the table has.

    Args:
        table: of a subclass of torch's; it keeps its numbers.
        layer: of the same options, to be trained in its place.
    """
    kind: Any = type(table)
    made = _copied(table, _class_of(kind))
    del made._parameters[WEIGHT]
    for name, value in vars(layer).items():
        if not name.startswith("_"):
            vars(made)[name] = value
    made._parameters = {**layer._parameters, **made._parameters}
    return cast("TwoLayerTable", made)


def _plain(layer: TwoLayerTable, kind: type[nn.Module]) -> nn.Module:
    made = _copied(layer, kind)
    for name in OF_TWO_LAYERS:
        vars(made).pop(name, None)
    others = {n: p for n, p in made._parameters.items() if n not in (INNER, PROJECTION)}
    weight = nn.Parameter(collapse_table(layer.inner, layer.projection))
    made._parameters = {WEIGHT: weight, **others}
    return cast("nn.Module", made)


def _copied(module: nn.Module, kind: type[nn.Module]) -> Any:
    """An instance of another class with the same parts."""
    made = kind.__new__(kind)
    vars(made).update(vars(module))
    for name in _CONTAINERS:
        vars(made)[name] = dict(vars(module)[name])
    return made


def _empty(kind: Any) -> TwoLayerTable:
    made = _class_of(kind)
    return made.__new__(made)
