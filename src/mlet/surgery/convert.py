"""Ordinary tables to two-layer ones, in any model."""

from __future__ import annotations

import fnmatch
import operator
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, SupportsIndex, TypeAlias

from torch import nn

from mlet.errors import ConversionError
from mlet.nn import Embedding, EmbeddingBag
from mlet.nn.factored import factored_modules
from mlet.nn.init import INITIALISATIONS, InitName
from mlet.nn.inner_dim import DEFAULT_INNER_DIM, WIDENING, TableSize, choose_inner_dims
from mlet.nn.stacked_tables import StackedTables
from mlet.nn.two_layer import TwoLayerTable
from mlet.optim.processes import Processes
from mlet.surgery.collections import check_unsharded, collections_of
from mlet.surgery.modules import become, check_plain, check_replaceable, find, replace
from mlet.surgery.subclasses import under_subclass
from mlet.surgery.ties import check_ties, share_factors

#: A glob on the qualified name, or a compiled regular expression searched in it.
Pattern: TypeAlias = str | re.Pattern[str]
Patterns: TypeAlias = Pattern | Sequence[Pattern] | None
#: Inner dimension of every table, by name pattern, by rule ``(name, n, d) -> k``, or chosen.
InnerDim: TypeAlias = (
    int | Mapping[str, int] | Callable[[str, int, int], int | None] | Literal["auto"]
)

ConversionInit: TypeAlias = Literal["preserve", "paper", "variance_matched", "fresh"]
#: Classes whose forward is known.
_EXACT = (nn.Embedding, nn.EmbeddingBag)
#: How the factors of a new layer are drawn, which ``preserve`` then overwrites.
_DRAWN: dict[str, InitName] = {
    "preserve": "paper",
    **{name: name for name in INITIALISATIONS},
    "fresh": "variance_matched",
}


def convert(
    model: nn.Module,
    inner_dim: InnerDim | None = None,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    min_rows: int = 1,
    init: ConversionInit = "preserve",
    subclasses: Collection[type[nn.Module]] = (),
    tied: Literal["refuse", "together"] = "refuse",
) -> nn.Module:
    """Make the model's embedding tables two-layer, in place.

    Every ``nn.Embedding`` and ``nn.EmbeddingBag`` of the module tree is replaced, wherever it is
    held. TorchRec's ``EmbeddingBagCollection`` and ``EmbeddingCollection`` become collections that
    look their tables up together (`mlet.nn.torchrec_collections`). A module that is used in several
    places is converted once and stays shared. Subclasses are left alone, unless they are vouched
    for: what their ``forward`` does is not known.

    Args:
        model: any module.
        inner_dim: the inner dimension k, by default 64 or, where that is more, 4 d; or a mapping
            from name patterns to k, the first match counting and tables without one left alone; or
            a rule ``(name, n, d) -> k``, None leaving the table alone; or ``"auto"``, the rule of
            `mlet.nn.inner_dim`, which leaves wide and tiny tables alone and keeps to a quarter of
            the machine's memory.
        include, exclude: globs (``"*.user_table"``) or compiled regular expressions on qualified
            names. By default every table is included.
        min_rows: tables with fewer categories are left alone.
        init: ``"preserve"`` keeps the table's values to float precision (see
            `mlet.nn.init.balanced_factors`; the extra directions are drawn with standard
            deviation ``1/sqrt(n)``); ``"paper"`` and ``"variance_matched"`` draw both
            factors afresh (see `mlet.nn.init`), for training from scratch; ``"fresh"`` is the one
            of them that we recommend, ``"variance_matched"``.
        subclasses: classes derived from ``nn.Embedding`` or ``nn.EmbeddingBag`` that are converted
            too. They keep their class (``isinstance`` holds), their parts and their ``forward``;
            its ``super().forward(...)`` looks up in two layers, its ``self.weight`` is the product,
            made afresh at each access.
        tied: what becomes of a weight that other tables or ``nn.Linear`` layers share: it is
            refused, or all are converted ``"together"`` and train the same two factors.

    Returns:
        The model; or, if it was itself a table, the layer that replaces it. Under
        `DistributedDataParallel`, ``sparse`` tables exchange the rows of their gradients.

    Raises:
        ConversionError: there is nothing to convert, a pattern matches no table, a weight is
            shared with another module or parametrized, a table has parts or hooks that its
            replacement could not have, it cannot be converted, or it or the
            model is inside a wrapper that would go on with the old one.
        UserWarning: (warning) an inner dimension is not above its embedding dimension.
    """
    check_unsharded(model)
    if any(isinstance(part, nn.parallel.DistributedDataParallel) for part in model.modules()):
        raise ConversionError(
            "a model inside DistributedDataParallel cannot be converted, which would go on "
            "averaging the gradients of its old parameters: convert it first, then wrap it"
        )
    tables = _tables(model, subclasses)
    chosen = _choose(tables, include, exclude, min_rows)
    reasons: dict[str, str] = {}
    sizes = _inner_dims(chosen, inner_dim, reasons)
    if not sizes:
        why = "; ".join(f"{name or 'the table'}: {reason}" for name, reason in reasons.items())
        raise ConversionError(
            f"nothing to convert: no table is left of {', '.join(map(repr, tables))}; check "
            f"include, exclude, min_rows and inner_dim{f' ({why})' if why else ''}"
        )
    if tied not in ("refuse", "together"):
        raise ConversionError(f"tied={tied!r} is not one of 'refuse', 'together'")
    converted = {name: chosen[name] for name in sizes}
    for name, table in converted.items():
        check_plain(name, table, ("weight",), whole=type(table) in _EXACT)
        check_ties(model, name, table, converted, tied == "together")
        _check_held(name, table, sizes[name], init)
    # All new layers are made before the first is put in place: an error leaves the model alone.
    collections = collections_of(model, converted)
    together = {name for each in collections for name in each.tables}
    made = [
        (each.module, each.converted(sizes, _DRAWN[init], preserve=init == "preserve"))
        for each in collections
    ]
    layers = {
        name: _two_layer(chosen[name], k, init) for name, k in sizes.items() if name not in together
    }
    replaced: list[tuple[nn.Module, nn.Module]] = list(share_factors(model, converted, layers))
    for name, layer in layers.items():
        check_replaceable(model, name, chosen[name], layer)
        replaced.append((chosen[name], layer))
    for collection, joined in made:
        become(collection, joined)
    for old, new in replaced:
        model = replace(model, old, new)
    sparse = [part for part in model.modules() if isinstance(part, TwoLayerTable | StackedTables)]
    sparse = [table for table in sparse if table.sparse and table.stacked.requires_grad]
    if sparse:
        # `DistributedDataParallel` exchanges rows of torch's own classes alone.
        Processes(model, sparse)
    return model


def _tables(model: nn.Module, subclasses: Collection[type[nn.Module]]) -> dict[str, nn.Module]:
    """All that may be converted, by name.

    Raises:
        ConversionError: there is none, or a class that was vouched for is no table, or not there.
    """
    for kind in subclasses:
        if not (isinstance(kind, type) and issubclass(kind, _EXACT)) or kind in _EXACT:
            raise ConversionError(
                f"subclasses: {getattr(kind, '__name__', kind)} is no subclass of nn.Embedding or "
                f"nn.EmbeddingBag"
            )
    others = {
        type(part)
        for part in model.modules()
        if isinstance(part, _EXACT) and type(part) not in _EXACT
        if not isinstance(part, TwoLayerTable)
    }
    missing = [kind.__name__ for kind in subclasses if kind not in others]
    names = ", ".join(sorted(kind.__name__ for kind in others)) or "none"
    if missing:
        raise ConversionError(
            f"subclasses: the model has no {', '.join(missing)}; its subclasses are: {names}"
        )
    tables = find(model, (*_EXACT, *subclasses), exact=True)
    if tables:
        return tables
    already = factored_modules(model)
    reason = (
        f"its tables are two-layer already: {', '.join(already)}"
        if already
        else "it has no nn.Embedding or nn.EmbeddingBag"
    )
    if others:
        reason += f", only {names}: vouch for what it does with subclasses={{{names}}}"
    raise ConversionError(f"nothing to convert in {type(model).__name__}: {reason}")


def _matches(name: str, pattern: Pattern) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def _selected(names: Sequence[str], patterns: Patterns, argument: str) -> set[str]:
    """The names that some pattern matches; each pattern must match one."""
    if patterns is None:
        return set()
    listed = [patterns] if isinstance(patterns, str | re.Pattern) else list(patterns)
    selected = set()
    for pattern in listed:
        matched = {name for name in names if _matches(name, pattern)}
        if not matched:
            text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
            raise ConversionError(
                f"{argument} pattern {text!r} matches no table; there are: {', '.join(names)}"
            )
        selected |= matched
    return selected


def _choose(
    tables: Mapping[str, nn.Module], include: Patterns, exclude: Patterns, min_rows: int
) -> dict[str, nn.Embedding | nn.EmbeddingBag]:
    names = list(tables)
    included = set(names) if include is None else _selected(names, include, "include")
    included -= _selected(names, exclude, "exclude")
    return {
        name: table
        for name, table in tables.items()
        if name in included
        and isinstance(table, nn.Embedding | nn.EmbeddingBag)
        and table.num_embeddings >= min_rows
    }


def _inner_dims(
    tables: Mapping[str, nn.Embedding | nn.EmbeddingBag],
    inner_dim: InnerDim | None,
    reasons: dict[str, str],
) -> dict[str, int]:
    """k of each table that is to be converted; of others the reason, where there is one."""
    if isinstance(inner_dim, str):
        if inner_dim != "auto":
            _whole(inner_dim)
        found = choose_inner_dims(
            {
                name: TableSize(table.num_embeddings, table.embedding_dim)
                for name, table in tables.items()
            }
        )
        reasons.update({name: one.reason for name, one in found.items() if one.value is None})
        return {name: one.value for name, one in found.items() if one.value is not None}
    if isinstance(inner_dim, Mapping):
        _selected(list(tables), list(inner_dim), "inner_dim")
        rule = _first_match(inner_dim)
    elif inner_dim is None:

        def rule(name: str, n: int, d: int) -> int | None:
            return max(DEFAULT_INNER_DIM, WIDENING * d)

    elif callable(inner_dim):
        rule = inner_dim
    else:
        return dict.fromkeys(tables, _whole(inner_dim))
    sizes = {}
    for name, table in tables.items():
        k = rule(name, table.num_embeddings, table.embedding_dim)
        if k is not None:
            sizes[name] = _whole(k)
    return sizes


def _whole(k: SupportsIndex | str) -> int:
    """An inner dimension as an int, also one of NumPy's.

    Raises:
        ConversionError: it is none.
    """
    try:
        return operator.index(k)  # type: ignore[arg-type]
    except TypeError:
        raise ConversionError(
            f"inner_dim={k!r}: expected an integer, a mapping from names to integers, a rule "
            f"(name, n, d) that gives one, or 'auto'"
        ) from None


def _first_match(sizes: Mapping[str, int]) -> Callable[[str, int, int], int | None]:
    def rule(name: str, n: int, d: int) -> int | None:
        return next((k for pattern, k in sizes.items() if _matches(name, pattern)), None)

    return rule


def _check_held(
    name: str, table: nn.Embedding | nn.EmbeddingBag, k: int, init: ConversionInit
) -> None:
    """Refuse a table that a product of this inner dimension cannot hold.

    Raises:
        ConversionError: it cannot, or there is no such ``init``.
    """
    if init not in _DRAWN:
        raise ConversionError(f"init={init!r} is not one of {', '.join(map(repr, _DRAWN))}")
    if k < 1:
        raise ConversionError(f"table {name!r}: inner_dim must be at least 1, got {k}")
    if init == "preserve" and k < table.embedding_dim:
        raise ConversionError(
            f"table {name!r}: inner_dim={k} cannot hold the {table.embedding_dim} dimensions of "
            f"its weights; use a larger one, or init='fresh'"
        )
    weight = table.weight
    if init == "preserve" and not weight.is_meta and not weight.isfinite().all():
        raise ConversionError(
            f"table {name!r} holds NaN or infinite values, which factors cannot preserve; mend it, "
            f"or use init='paper'"
        )
    if init != "preserve" and not weight.requires_grad:
        warnings.warn("a frozen table is drawn afresh and stays frozen", UserWarning, stacklevel=3)


def _two_layer(
    table: nn.Embedding | nn.EmbeddingBag, k: int, init: ConversionInit
) -> TwoLayerTable:
    """The layer that takes the table's place, with its options, dtype, device and mode."""
    weight = table.weight
    options = {
        "padding_idx": table.padding_idx,
        "max_norm": table.max_norm,
        "norm_type": table.norm_type,
        "scale_grad_by_freq": table.scale_grad_by_freq,
        "sparse": table.sparse,
        "inner_dim": k,
        "init": _DRAWN[init],
        "device": weight.device,
        "dtype": weight.dtype,
    }
    layer: TwoLayerTable
    if isinstance(table, nn.EmbeddingBag):
        layer = EmbeddingBag(
            table.num_embeddings,
            table.embedding_dim,
            mode=table.mode,  # type: ignore[arg-type]
            include_last_offset=table.include_last_offset,
            **options,  # type: ignore[arg-type]
        )
    else:
        layer = Embedding(table.num_embeddings, table.embedding_dim, **options)  # type: ignore[arg-type]
    if init == "preserve":
        layer.set_table(weight)
    layer.requires_grad_(weight.requires_grad)
    for factor in (layer.inner, layer.projection):
        vars(factor).update(vars(weight))  # what users attach to parameters, as for an optimizer
    layer.train(table.training)
    return layer if type(table) in _EXACT else under_subclass(table, layer)
