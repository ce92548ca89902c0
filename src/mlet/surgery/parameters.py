"""What was converted, and its parameters for an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mlet.errors import ConversionError
from mlet.nn.factored import factored_modules, qualified


@dataclass(frozen=True)
class TableSummary:
    """One two-layer table.

    Attributes:
        name: qualified name in the model.
        n, d, k: categories, embedding dimension, inner dimension.
    """

    name: str
    n: int
    d: int
    k: int

    @property
    def served(self) -> int:
        """Parameters before conversion and after collapsing: n · d."""
        return self.n * self.d

    @property
    def trained(self) -> int:
        """Parameters while training: (n + d) · k."""
        return (self.n + self.d) * self.k


@dataclass(frozen=True)
class ModelSummary:
    """The two-layer tables of a model and the number of its other parameters; prints as a table."""

    tables: tuple[TableSummary, ...]
    others: int

    def __str__(self) -> str:
        """Name, n, d, k and parameters before, during and after training, with totals."""
        rows: list[tuple[str, ...]] = [("table", "n", "d", "k", "before", "training", "after")]
        for table in self.tables:
            numbers = (table.n, table.d, table.k, table.served, table.trained, table.served)
            rows.append((table.name or "(the model itself)", *(f"{x:,}" for x in numbers)))
        served = sum(table.served for table in self.tables) + self.others
        trained = sum(table.trained for table in self.tables) + self.others
        others = f"{self.others:,}"
        rows.append(("all else", "", "", "", others, others, others))
        rows.append(("total", "", "", "", f"{served:,}", f"{trained:,}", f"{served:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def summary(model: nn.Module) -> ModelSummary:
    """The two-layer tables of a model: ``print(mlet.summary(model))``."""
    rows = [
        TableSummary(
            qualified(name, table), factors.num_embeddings, factors.embedding_dim, factors.inner_dim
        )
        for name, module in factored_modules(model).items()
        for table, factors in module.named_factors().items()
        if factors.inner_dim is not None
    ]
    everything = sum(parameter.numel() for parameter in model.parameters())
    return ModelSummary(tuple(rows), everything - sum(row.trained for row in rows))


def param_groups(
    model: nn.Module,
    *,
    inner: Mapping[str, Any] | None = None,
    projection: Mapping[str, Any] | None = None,
    rest: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: inner tables, projections, everything else.

    Args:
        model: a converted model.
        inner, projection, rest: settings of each group, as ``{"lr": 0.1}``; what is not given is
            the optimizer's default.

    Returns:
        The groups that have parameters, each parameter in one of them.

    Raises:
        ConversionError: there is no two-layer table.
    """
    modules = factored_modules(model).values()
    pairs = [pair for module in modules for pair in module.factor_parameters()]
    if not pairs:
        raise ConversionError(f"{type(model).__name__} has no two-layer table; convert it first")
    inners, projections = ([pair[place] for pair in pairs] for place in (0, 1))
    own = {id(parameter) for parameter in (*inners, *projections)}
    others = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups = ((inners, inner), (projections, projection), (others, rest))
    return [{"params": params, **(settings or {})} for params, settings in groups if params]
