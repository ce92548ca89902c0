"""A model's weights but for those of its tables, from another model."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from mlet.errors import RunError


@torch.no_grad()
def copy_besides(
    tables: Collection[str], model: nn.Module, source: nn.Module, *, origin: str, remedy: str
) -> None:
    """Copy what two models have beside some parts.

    Args:
        tables: names of these parts, in both.
        model: what is filled.
        source: what it is filled from.
        origin, remedy: of the source, and what to do about another model, for the error.

    Raises:
        RunError: a weight is missing in one of them, or of another shape.
    """
    own, given = _besides(tables, model), _besides(tables, source)
    for name in dict.fromkeys([*own, *given]):
        shapes = [tuple(part[name].shape) if name in part else None for part in (given, own)]
        if shapes[0] != shapes[1]:
            raise RunError(
                f"{origin} is another: {name!r} is {shapes[0]} there and {shapes[1]} here; {remedy}"
            )
        own[name].copy_(given[name])


def _besides(tables: Collection[str], model: nn.Module) -> dict[str, Tensor]:
    prefixes = tuple(f"{name}." for name in tables)
    state = model.state_dict(keep_vars=True)
    return {name: part for name, part in state.items() if not name.startswith(prefixes)}
