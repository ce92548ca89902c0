"""Tables with more categories, in any model that is trained already."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from mlet.engine import TableStack
from mlet.errors import ConversionError
from mlet.nn import Embedding, EmbeddingBag, FieldEmbedding
from mlet.nn.collection_tables import CollectionTables
from mlet.nn.factored import INNER, WEIGHT, qualified
from mlet.nn.field_tables import FieldTables
from mlet.nn.growth import (
    GrownParameter,
    NewRows,
    Start,
    grown_parameter,
    resize_field,
    resize_tables,
)
from mlet.nn.stacked_tables import StackedTables
from mlet.nn.two_layer import TwoLayerTable
from mlet.optim.growth import OptimizerGrowth
from mlet.surgery.modules import GRADIENT_HOOKS
from mlet.surgery.ties import same_memory

#: Classes whose forward is known.
_EXACT = (nn.Embedding, nn.EmbeddingBag, Embedding, EmbeddingBag)
_TABLES = (nn.Embedding, nn.EmbeddingBag, TwoLayerTable)


@dataclass(frozen=True)
class _Table:
    """A table of a model: a layer by itself, or a field's among those of one matrix."""

    module: nn.Module
    rows: int
    field: str = ""
    of: FieldEmbedding | CollectionTables | None = None


def grow(
    model: nn.Module,
    sizes: Mapping[str, int] | int,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    start: Start = "mean",
    noise: float = 1.0,
    subclasses: Collection[type[nn.Module]] = (),
) -> nn.Module:
    """Give tables of a trained model more categories, in place: known ids keep all they have.

    ``nn.Embedding``, ``nn.EmbeddingBag``, `mlet.Embedding`, `mlet.EmbeddingBag` and the fields of
    `mlet.nn.FieldEmbedding` grow, before `mlet.convert` as after it. The layers stay the objects
    that they are, with their options, mode and hooks; their rows become new parameters of the same
    dtype, device and ``requires_grad``. New rows come after the old ones. Projections and biases of
    tables stay. Gradients of the tables so far are forgotten. Tables with one weight grow together.

    Args:
        model: any module.
        sizes: the number of categories of each table by qualified name, ``<module>.<field>`` of a
            field; of a model that is a table itself, the number alone.
        optimizer: that or those which train it: what it keeps of each row stays, a new row begins
            as in a new optimizer, and the new parameters take the old ones' places in its groups.
            Those of `mlet.optim`, and of torch all whose states are those of rows. Without it, make
            a new one: the old one would go on with the old parameters.
        start: what new rows begin as: ``"mean"``, of all rows but that of padding; an id, as 0
            where that is the category of unknown ones; ``"padding"``; or a vector (d,), or of a
            single table one for each new row (m × d).
        noise: added to each, uniform on ±noise · √(1/n), n the new number of categories. 1 is what
            mlet draws tables from.
        subclasses: classes derived from ``nn.Embedding`` or ``nn.EmbeddingBag``, whose ``forward``
            is vouched for to do the same with more rows.

    Returns:
        The model.

    Raises:
        ConversionError: there is no such table, or it has more categories already; its weight is
            parametrized, has hooks on its gradient, or is also that of a layer that is no table; it
            is compressed; an optimizer's state cannot grow. The model is then as it was.

    Example:
        >>> mlet.grow(model, {"user_table": 12_000}, optimizer=optimizer)
    """
    if any(isinstance(part, nn.parallel.DistributedDataParallel) for part in model.modules()):
        raise ConversionError(
            "a model inside DistributedDataParallel cannot grow, which would go on averaging the "
            "gradients of its old parameters: grow it first, then wrap it"
        )
    if not 0 <= noise < math.inf:
        raise ConversionError(f"noise must not be negative, got {noise}")
    tables = _tables(model)
    wanted = _wanted(model, tables, sizes)
    chosen = {name: (tables[name], rows) for name, rows in wanted.items()}
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    by_parameter: dict[int, dict[str, tuple[_Table, int]]] = {}
    for name, (table, rows) in chosen.items():
        parameter = _parameter(name, table)
        _check_class(name, table, subclasses)
        _check_holders(model, name, table, parameter, chosen)
        by_parameter.setdefault(id(parameter), {})[name] = (table, rows)
    grown = [_grown(group, start, noise) for group in by_parameter.values()]
    growth = OptimizerGrowth(optimizers, grown)
    for name, (table, _) in chosen.items():
        fused = getattr(table.module, "row_gradients", None) is not None
        fused |= getattr(table.module, "factored_gradient", False)
        if fused and not growth.holds(_parameter(name, table)):
            raise ConversionError(
                f"table {name!r} is trained by a fused optimizer: give it as optimizer=, or "
                f"detach() it first and make a new one afterwards"
            )
    growth.apply()
    for one in grown:
        _put_in_place(model, one)
    for table, rows in chosen.values():
        _resize(table, rows)
    return model


def _tables(model: nn.Module) -> dict[str, _Table]:
    """All tables that there are, by name."""
    found: dict[str, _Table] = {}
    for name, module in model.named_modules():
        if isinstance(module, FieldEmbedding | CollectionTables):
            for field in module.table_names:
                inside = module.tables_of(field)
                found[qualified(name, field)] = _Table(inside, inside.sizes[field], field, module)
        elif isinstance(module, _TABLES):
            found[name] = _Table(module, module.num_embeddings)
    return found


def _wanted(
    model: nn.Module, tables: Mapping[str, _Table], sizes: Mapping[str, int] | int
) -> dict[str, int]:
    """The tables that are to grow, those of equal weight included, and how far.

    Raises:
        ConversionError: there is none of a name, or a size is none.
    """
    named = {"": sizes} if not isinstance(sizes, Mapping) else dict(sizes)
    known = ", ".join(repr(name) for name in tables) or "none"
    for name, rows in named.items():
        if name not in tables:
            raise ConversionError(f"no table {name!r} to grow; the tables are {known}")
        try:
            named[name] = rows = operator.index(rows)
        except TypeError:
            raise ConversionError(f"table {name!r}: {rows!r} is no number of categories") from None
        if rows < tables[name].rows:
            raise ConversionError(
                f"table {name!r} has {tables[name].rows} categories, which cannot become {rows}: "
                f"tables only grow"
            )
    for name, rows in list(named.items()):
        weight = _weight(tables[name])
        for other, table in tables.items():
            if weight is None or table.of is not None or _weight(table) is not weight:
                continue
            if named.setdefault(other, rows) != rows:
                raise ConversionError(
                    f"tables {name!r} and {other!r} have one weight, and cannot become {rows} and "
                    f"{named[other]} categories"
                )
    return {name: rows for name, rows in named.items() if rows > tables[name].rows}


def _weight(table: _Table) -> nn.Parameter | None:
    """The parameter that a table's rows lie in; None if they lie in none of its own."""
    parameters = table.module._parameters
    return parameters.get(INNER, parameters.get(WEIGHT))


def _parameter(name: str, table: _Table) -> nn.Parameter:
    """As `_weight`.

    Raises:
        ConversionError: it has none, or one with hooks.
    """
    if isinstance(table.module, FieldTables) and type(table.module) is not StackedTables:
        raise ConversionError(
            f"table {name!r} is kept in {type(table.module).__name__}, which has no row for each "
            f"category, or codes for it; only ordinary and two-layer tables grow"
        )
    if table.of is not None and table.of.has_rare_rows(table.field):
        raise ConversionError(
            f"table {name!r}: its rare categories share rows, so that a new one has none of its "
            f"own; only tables with a row for each category grow"
        )
    parameter = _weight(table)
    if parameter is None:
        raise ConversionError(
            f"table {name!r}: its weight is parametrized or pruned, or no parameter of its own; "
            f"remove that first (torch.nn.utils.parametrize.remove_parametrizations, "
            f"torch.nn.utils.prune.remove)"
        )
    if any(getattr(parameter, kind, None) for kind in GRADIENT_HOOKS):
        raise ConversionError(
            f"table {name!r}: its weight has hooks on its gradient, which the one with more rows "
            f"would not have; remove them, and register them afterwards"
        )
    return parameter


def _check_class(name: str, table: _Table, subclasses: Collection[type[nn.Module]]) -> None:
    """Refuse what may do something else with more rows.

    Raises:
        ConversionError: of a class that is not known, or with other parts of a row for each.
    """
    module = table.module
    if table.of is None and type(module) not in _EXACT:
        found = type(module).__name__
        if not any(kind in type(module).__mro__ for kind in subclasses):
            raise ConversionError(
                f"table {name!r} is a {found}, of which is not known what it does with more rows: "
                f"vouch for it with subclasses={{{found}}}"
            )
    if table.of is None:
        others = {**module._parameters, **module._buffers}
        for part, tensor in others.items():
            own = part in (INNER, WEIGHT, "projection")
            if not own and tensor is not None and tensor.shape[:1] == (table.rows,):
                raise ConversionError(
                    f"table {name!r} holds {part!r} with an entry for each category, which would "
                    f"not grow; remove it first"
                )


def _check_holders(
    model: nn.Module,
    name: str,
    table: _Table,
    parameter: nn.Parameter,
    chosen: Mapping[str, tuple[_Table, int]],
) -> None:
    """Refuse a weight that something else reads too.

    Raises:
        ConversionError: something does that is no table, or only shares its memory.
    """
    modules = [each.module for each, _ in chosen.values()]
    for other_name, other in model.named_modules():
        for held in other._parameters.values():
            if other is table.module or not same_memory(held, parameter):
                continue
            if held is parameter and any(other is each for each in modules):
                continue
            what = type(other).__name__
            how = "is that" if held is parameter else "shares the memory"
            raise ConversionError(
                f"table {name!r}: its weight {how} of {other_name!r}, a {what}, which would have "
                f"other outputs with more rows; untie them, grow the table, and tie them again"
            )


def _grown(tables: Mapping[str, tuple[_Table, int]], start: Start, noise: float) -> GrownParameter:
    """One parameter with more rows, for all tables that lie in it.

    Raises:
        ConversionError: the new rows cannot start so.
    """
    name, (table, rows) = next(iter(tables.items()))
    module: Any = table.module
    parameter = _parameter(name, table)
    try:
        if not isinstance(module, StackedTables):
            own = module.projection if isinstance(module, TwoLayerTable) else None
            new = NewRows(rows, start, noise, module.padding_idx, _detached(own))
            return grown_parameter(parameter, [table.rows], [new])
        sizes = {each.field: size for each, size in tables.values()}
        more: list[NewRows | None] = []
        for place, field in enumerate(module.sizes):
            projection = None if module.inner_dim is None else module.projection[place]
            bias = None if module.table_bias is None else module.table_bias[place]
            scaled = noise * module.init_scale
            new = NewRows(
                sizes.get(field, 0), start, scaled, None, _detached(projection), _detached(bias)
            )
            more.append(new if field in sizes else None)
        return grown_parameter(parameter, list(module.sizes.values()), more)
    except ValueError as error:
        raise ConversionError(f"table {name!r}: {error}") from None


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _put_in_place(model: nn.Module, one: GrownParameter) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is one.old:
                module._parameters[name] = one.new


def _resize(table: _Table, rows: int) -> None:
    """Let the modules know how many categories there are."""
    module: Any = table.module
    left = getattr(module, "row_gradients", None)
    if left:
        left.clear()
    if table.of is None:
        module.num_embeddings = rows
        if isinstance(module, TwoLayerTable):
            module.stack = TableStack(("",), (rows,))
        return
    if isinstance(table.of, FieldEmbedding):
        resize_field(table.of, table.field, rows)
    else:
        resize_tables(module, table.field, rows)
