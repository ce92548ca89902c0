"""The two factors of a table, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mlet.nn.factored import Factored, Factors, factor_pairs, qualified
from mlet.nn.two_layer import TwoLayerTable


def factors_of(model: nn.Module) -> dict[str, Factors]:
    """Every table in a model: fields of a `FieldEmbedding` by their names, layers by theirs.

    Ordinary fields of a `FieldEmbedding` are included; other ordinary layers are not. Where two
    layers have a field of one name, the second's is put behind its layer's name.
    """
    found: dict[str, Factors] = {}
    for name, module in model.named_modules():
        if isinstance(module, Factored):
            for table, factors in module.named_factors().items():
                taken = not table or table in found
                found[qualified(name, table) if taken else table] = factors
    return found


def factors_of_state_dict(state: Mapping[str, Any]) -> dict[str, Factors]:
    """Every pair ``x.inner`` (n × k), ``x.projection`` (k × d) in a ``state_dict``, by x.

    Raises:
        ConversionError: the shapes of a pair do not fit together.
    """
    pairs = factor_pairs(state)
    return {name or "(the model itself)": factors for name, factors in pairs.items()}


def as_factors(layer: TwoLayerTable | Factors) -> Factors:
    """The factors of a two-layer table.

    Raises:
        ValueError: the table is an ordinary one.
    """
    factors = layer if isinstance(layer, Factors) else layer.named_factors()[""]
    factors.wide_projection()
    return factors
