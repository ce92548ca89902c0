"""Two-layer tables back to ordinary ones, in any model or checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from mlet.errors import ConversionError
from mlet.nn import Embedding, EmbeddingBag
from mlet.nn.factored import (
    INNER,
    PROJECTION,
    TABLE_BIAS,
    WEIGHT,
    Factors,
    collapse_table,
    factor_pairs,
    factored_modules,
    qualified,
)
from mlet.nn.two_layer import TwoLayerTable
from mlet.nn.two_layer_collection import TwoLayerCollection
from mlet.surgery.collections import is_sharded
from mlet.surgery.modules import become, check_plain, check_replaceable, replace
from mlet.surgery.ties import share_weights

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
            In TorchRec's ``DistributedModelParallel``, which stays, each process multiplies the
            rows of its own shards, and all must call this.

    Returns:
        The model without wrappers; or the plain layer, if it was itself a two-layer table.

    Raises:
        ConversionError: there is no two-layer table in it, or one that cannot be replaced.
    """
    model = unwrap(model)
    tables = factored_modules(model)
    if is_sharded(model):
        if tables:
            raise ConversionError(
                f"{', '.join(map(repr, tables))}: two-layer and not sharded, in a model with "
                f"collections that are: collapse its state (mlet.collapse_state_dict)"
            )
        from mlet.distributed.collapse import collapse_sharded

        return collapse_sharded(model)
    if not tables:
        raise ConversionError(
            f"nothing to collapse in {type(model).__name__}: it has no two-layer table"
        )
    for name, table in tables.items():
        if isinstance(table, TwoLayerTable):
            known = type(table) in (Embedding, EmbeddingBag)
            check_plain(name, table, (INNER, PROJECTION), whole=known)
    collapsed = {name: table.collapse() for name, table in tables.items()}
    collections = {n: each for n, each in tables.items() if isinstance(each, TwoLayerCollection)}
    tables = {name: table for name, table in tables.items() if name not in collections}
    for name, table in tables.items():
        check_replaceable(model, name, table, collapsed[name])
    for name, table in tables.items():
        trained = any(inner.requires_grad for inner, _ in table.factor_parameters())
        collapsed[name].requires_grad_(trained)
    layers = {name: each for name, each in tables.items() if isinstance(each, TwoLayerTable)}
    replaced = share_weights(model, layers, collapsed)
    replaced += [(table, collapsed[name]) for name, table in tables.items()]
    for name, collection in collections.items():
        become(collection, collapsed[name])
    for old, new in replaced:
        model = replace(model, old, new)
    return model


@overload
def collapse_state_dict(state: Mapping[str, Any]) -> dict[str, Any]: ...
@overload
def collapse_state_dict(state: str | PathLike[str], out: str | PathLike[str]) -> None: ...


def collapse_state_dict(
    state: Mapping[str, Any] | str | PathLike[str], out: str | PathLike[str] | None = None
) -> dict[str, Any] | None:
    """A plain model's ``state_dict`` from that of a converted one, without building either.

    Pairs ``x.inner`` (n × k) and ``x.projection`` (k × d) become ``x.weight`` (n × d), and an
    ``x.table_bias`` (d) is added to its rows; all else stays. A prefix of DistributedDataParallel
    or ``torch.compile`` that all names share is taken off.

    Args:
        state: a ``state_dict``; or a folder that `torch.distributed.checkpoint` has written, with
            the model's state in it under any name. Of a folder, a shard at a time is in memory, and
            what an optimizer kept of the factors is left out.
        out: the folder to write, given one; new, or empty.

    Returns:
        The plain ``state_dict``; of a folder nothing.

    Raises:
        ConversionError: there is no such pair, or the shapes of one do not fit together; there is
            no checkpoint in the folder, or something in ``out``.
    """
    if not isinstance(state, Mapping):
        if out is None:
            raise ConversionError(f"{state}: of a checkpoint's folder, name one to be written: out")
        from mlet.surgery.checkpoint_folder import collapse_folder

        collapse_folder(Path(state), Path(out))
        return None
    if out is not None:
        raise ConversionError("out is for a checkpoint's folder; a state_dict is returned")
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
        bias = _bias_of(state, table)
        if factors is not None and factors.projection is not None and last in (INNER, PROJECTION):
            if last == INNER:
                plain[qualified(table, WEIGHT)] = _product(table, factors, bias)
        elif bias is not None and last == WEIGHT:
            plain[name] = value + bias.to(value.dtype)
        elif bias is None or last != TABLE_BIAS:
            plain[name] = value
    return plain


def _bias_of(state: Mapping[str, Any], table: str) -> Tensor | None:
    """What is added to all rows of a table, if anything is.

    Raises:
        ConversionError: there is no table to add it to, or it is of another width.
    """
    bias = state.get(qualified(table, TABLE_BIAS))
    if not isinstance(bias, Tensor):
        return None
    rows = state.get(qualified(table, PROJECTION), state.get(qualified(table, WEIGHT)))
    if not isinstance(rows, Tensor) or rows.dim() != 2 or bias.shape != rows.shape[1:]:
        raise ConversionError(
            f"table {table!r}: a table_bias {tuple(bias.shape)} without rows of its width"
        )
    return bias


def _product(table: str, factors: Factors, bias: Tensor | None) -> Tensor:
    """The ordinary table that a pair of factors stands for.

    Raises:
        ConversionError: its dtype cannot hold it.
    """
    assert factors.projection is not None
    product = collapse_table(factors.inner, factors.projection, bias)
    if not product.isfinite().all() and factors.are_finite():
        raise ConversionError(
            f"table {table!r}: the product exceeds what {product.dtype} can hold; save its "
            f"projection in a wider dtype"
        )
    return product


def _without_wrappers(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state without wrappers' prefixes.

    Only those that every name has: a model may well have a part of its own called ``module``.
    """
    for wrapper in _WRAPPERS:
        if state and all(str(name).startswith(wrapper) for name in state):
            stripped = {name.removeprefix(wrapper): value for name, value in state.items()}
            return _without_wrappers(stripped)
    return state
