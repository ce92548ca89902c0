"""Two-layer tables back to ordinary ones, in any model or checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mlet.errors import ConversionError
from mlet.nn.factored import (
    INNER,
    PROJECTION,
    WEIGHT,
    collapse_table,
    factor_pairs,
    factored_modules,
    qualified,
)
from mlet.nn.two_layer import TwoLayerTable
from mlet.surgery.modules import check_plain, check_replaceable, replace

#: Prefixes that wrappers of whole models put before every name.
_WRAPPERS = ("module.", "_orig_mod.")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own model inside DistributedDataParallel and ``torch.compile`` wrappers."""
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def collapse(model: nn.Module) -> nn.Module:
    """Make every two-layer table an ordinary one, in place: the original classes and names.

    The ``state_dict`` then has the names, shapes and dtypes of the plain model, so it loads there
    with ``strict=True``. Shared layers are collapsed once and stay shared.

    Args:
        model: as returned by `mlet.convert`, or built with `mlet.Embedding`,
            `mlet.EmbeddingBag` or `mlet.nn.FieldEmbedding`; DistributedDataParallel and
            ``torch.compile`` wrappers are taken off, since both refer to the old parameters.

    Returns:
        The model without wrappers; or the plain layer, if it was itself a two-layer table.

    Raises:
        ConversionError: there is no two-layer table in it, or one that cannot be replaced.
    """
    model = unwrap(model)
    tables = factored_modules(model)
    if not tables:
        raise ConversionError(
            f"nothing to collapse in {type(model).__name__}: it has no two-layer table"
        )
    for name, table in tables.items():
        if isinstance(table, TwoLayerTable):
            check_plain(name, table, (INNER, PROJECTION))
    collapsed = {name: table.collapse() for name, table in tables.items()}
    for name, table in tables.items():
        check_replaceable(model, name, table, collapsed[name])
    for name, table in tables.items():
        plain = collapsed[name]
        plain.requires_grad_(any(inner.requires_grad for inner, _ in table.factor_parameters()))
        model = replace(model, table, plain)
    return model


def collapse_state_dict(state: Mapping[str, Any]) -> dict[str, Any]:
    """A plain model's ``state_dict`` from that of a converted one, without building either.

    Pairs ``x.inner`` (n × k) and ``x.projection`` (k × d) become ``x.weight`` (n × d); all else
    stays. A prefix of DistributedDataParallel or ``torch.compile`` that all names share is taken
    off.

    Raises:
        ConversionError: there is no such pair, or the shapes of one do not fit together.
    """
    state = _without_wrappers(state)
    pairs = factor_pairs(state)
    if not pairs:
        raise ConversionError("nothing to collapse: no pair of 'inner' and 'projection' tensors")
    for table in pairs:
        if qualified(table, WEIGHT) in state:
            raise ConversionError(
                f"table {table!r} has both factors and a weight, one of which would be lost"
            )
    plain: dict[str, Any] = {}
    for name, value in state.items():
        table, _, last = name.rpartition(".")
        factors = pairs.get(table)
        if factors is None or factors.projection is None or last not in (INNER, PROJECTION):
            plain[name] = value
        elif last == INNER:
            product = collapse_table(factors.inner, factors.projection)
            if not product.isfinite().all() and factors.are_finite():
                raise ConversionError(
                    f"table {table!r}: the product exceeds what {product.dtype} can hold; save its "
                    f"projection in a wider dtype"
                )
            plain[qualified(table, WEIGHT)] = product
    return plain


def _without_wrappers(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state without wrappers' prefixes.

    Only those that every name has: a model may well have a part of its own called ``module``.
    """
    for wrapper in _WRAPPERS:
        if state and all(str(name).startswith(wrapper) for name in state):
            stripped = {name.removeprefix(wrapper): value for name, value in state.items()}
            return _without_wrappers(stripped)
    return state
