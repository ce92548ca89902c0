"""Weights that several modules share, as word embeddings and an output layer do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlet.errors import ConversionError
from mlet.nn.tied_linear import TiedLinear
from mlet.nn.two_layer import TwoLayerTable


def tied_to(model: nn.Module, table: nn.Module) -> dict[str, nn.Module]:
    """The other modules, by name, that hold a table's weight, or share its memory."""
    weight = table._parameters["weight"]
    assert weight is not None
    return {
        name: other
        for name, other in model.named_modules()
        if other is not table and any(same_memory(p, weight) for p in other._parameters.values())
    }


def same_memory(one: Tensor | None, other: Tensor) -> bool:
    """Whether two parameters are one, or share their memory."""
    if one is None or one is other:
        return one is other
    if one.is_meta or other.is_meta or one.layout != torch.strided or not one.numel():
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def check_ties(
    model: nn.Module, name: str, table: nn.Module, tables: Mapping[str, nn.Module], together: bool
) -> None:
    """Refuse a table whose weight is another module's too, unless both can read the product.

    Args:
        model: all of it.
        name, table: which.
        tables: all that will be converted.
        together: whether the caller asked for it.

    Raises:
        ConversionError: it is, and they were not to be converted together, or cannot be.
    """
    weight = table._parameters["weight"]
    for other_name, other in tied_to(model, table).items():
        if not together:
            raise ConversionError(
                f"table {name!r}: its weight is tied to that of {other_name!r}, which would keep "
                f"the old one; tied='together' lets both read the product, exclude={name!r} leaves "
                f"it out"
            )
        if other._parameters.get("weight") is not weight:
            raise ConversionError(
                f"table {name!r}: {other_name!r} shares its memory, but not as its own weight; "
                f"untie them first, or exclude={name!r}"
            )
        if type(other) is not nn.Linear and not any(other is each for each in tables.values()):
            raise ConversionError(
                f"table {name!r}: its weight is tied to that of {other_name!r}, a "
                f"{type(other).__name__}; together can be converted tables and nn.Linear; untie "
                f"them first, or exclude={name!r}"
            )


def share_factors(
    model: nn.Module, tables: Mapping[str, nn.Module], layers: dict[str, TwoLayerTable]
) -> list[tuple[nn.Module, nn.Module]]:
    """Let layers of tied tables have the same factors.

    Returns:
        Output layers tied to tables, and what takes their place.
    """
    replaced: list[tuple[nn.Module, nn.Module]] = []
    first: dict[int, TwoLayerTable] = {}
    for name, layer in layers.items():
        table = tables[name]
        whose = first.setdefault(id(table._parameters["weight"]), layer)
        if whose is not layer:
            layer.inner, layer.projection = whose.inner, whose.projection
            continue
        for other in tied_to(model, table).values():
            if isinstance(other, nn.Linear):
                made = TiedLinear(layer, other.bias)
                replaced.append((other, made.train(other.training)))
    return replaced


def share_weights(
    model: nn.Module, tables: Mapping[str, TwoLayerTable], collapsed: Mapping[str, nn.Module]
) -> list[tuple[nn.Module, nn.Module]]:
    """The way back: ordinary tables and output layers that have one weight again."""
    weights: dict[int, nn.Parameter] = {}
    for name, table in tables.items():
        plain = collapsed[name]
        weight = plain._parameters["weight"]
        assert weight is not None
        plain.weight = weights.setdefault(id(table.inner), weight)
    replaced: list[tuple[nn.Module, nn.Module]] = []
    for module in model.modules():
        if isinstance(module, TiedLinear):
            made = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            made.weight = weights[id(module.inner)]
            made.bias = module.bias
            replaced.append((module, made.train(module.training)))
    return replaced
