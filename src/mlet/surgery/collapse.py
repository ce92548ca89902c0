"""Two-layer tables back to ordinary ones, in any model or checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mlet.errors import ConversionError
from mlet.nn import Embedding, EmbeddingBag
from mlet.nn.two_layer import collapse_table
from mlet.surgery.modules import find, replace

_INNER, _PROJECTION = "inner", "projection"
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
        model: as returned by `mlet.convert`, or built with `mlet.Embedding` and
            `mlet.EmbeddingBag`; DistributedDataParallel and ``torch.compile`` wrappers are taken
            off, since both refer to the old parameters.

    Returns:
        The model without wrappers; or the plain layer, if it was itself a two-layer table.

    Raises:
        ConversionError: there is no two-layer table in it.
    """
    model = unwrap(model)
    tables = find(model, (Embedding, EmbeddingBag))
    if not tables:
        raise ConversionError(
            f"nothing to collapse in {type(model).__name__}: it has no two-layer table"
        )
    for table in tables.values():
        assert isinstance(table, Embedding | EmbeddingBag)
        plain = table.collapse()
        plain.requires_grad_(table.inner.requires_grad)
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
    plain: dict[str, Any] = {}
    pairs = 0
    state = _without_wrappers(state)
    for name, value in state.items():
        prefix, _, last = name.rpartition(".")
        dot = "." if prefix else ""
        if last == _PROJECTION and f"{prefix}{dot}{_INNER}" in state:
            continue
        projection = state.get(f"{prefix}{dot}{_PROJECTION}")
        if last != _INNER or not isinstance(projection, Tensor):
            plain[name] = value
            continue
        if value.dim() != 2 or projection.dim() != 2 or value.shape[1] != projection.shape[0]:
            raise ConversionError(
                f"{name!r} {tuple(value.shape)} and its projection {tuple(projection.shape)} are "
                f"no pair of factors"
            )
        plain[f"{prefix}{dot}weight"] = collapse_table(value, projection)
        pairs += 1
    if not pairs:
        raise ConversionError("nothing to collapse: no pair of 'inner' and 'projection' tensors")
    return plain


def _without_wrappers(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state without wrappers' prefixes.

    Only those that every name has: a model may well have a part of its own called ``module``.
    """
    for wrapper in _WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            stripped = {name.removeprefix(wrapper): value for name, value in state.items()}
            return _without_wrappers(stripped)
    return state
