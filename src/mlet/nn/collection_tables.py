"""The tables of a collection by name: two-layer ones in stacks, others as layers by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mlet.nn.factored import INNER, PROJECTION, WEIGHT, Factors, qualified
from mlet.nn.field_names import FieldEntries
from mlet.nn.stacked_tables import StackedTables


class CollectionTables(FieldEntries):
    """What takes the place of the ``nn.ModuleDict`` that a collection has its layers in.

    The ``state_dict`` is that of the layers, `mlet.Embedding` or `mlet.EmbeddingBag`, that the
    tables would be by themselves: ``<table>.inner`` and ``<table>.projection``. One that has a
    table's ``weight`` loads, too, as into those layers.

    Args:
        stacks: two-layer tables of equal shape in one matrix each.
        alone: the layers that are looked up by themselves, by table.
    """

    def __init__(self, stacks: Sequence[StackedTables], alone: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(stacks)
        self.table_names = tuple(name for stack in stacks for name in stack.sizes)
        for name, layer in alone.items():
            self.add_module(name, layer)

    def stacks(self) -> list[StackedTables]:
        """The matrices that the engine looks up."""
        return [stack for stack in self.tables if isinstance(stack, StackedTables)]

    def tables_of(self, name: str) -> StackedTables:
        """The stack that one table is in."""
        for stack in self.stacks():
            if name in stack.sizes:
                return stack
        raise KeyError(f"no table {name!r} in a stack; those are {list(self.table_names)}")

    def parts(self, name: str) -> dict[str, Tensor]:
        """Views of one table's rows of W2, and of its W1."""
        return self.tables_of(name).parts(name)

    def factors(self, name: str) -> Factors:
        """Views of one table's W2 (n × k) and W1 (k × d)."""
        return self.tables_of(name).factors(name)

    def entry_of(self, name: str) -> str:
        """Its own name, as an ``nn.ModuleDict`` gives it."""
        return name

    def has_rare_rows(self, name: str) -> bool:
        """None of them: each category has a row."""
        return False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, those too that are left for a fused optimizer."""
        super().zero_grad(set_to_none)
        for stack in self.stacks():
            if stack.row_gradients:
                stack.row_gradients.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """``others`` are torch's; the last is the list of what does not fit."""
        for name in self.table_names:
            self._take_plain_weight(name, state_dict, f"{prefix}{name}", others[-1])
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _take_plain_weight(
        self, name: str, state_dict: dict[str, Any], entry: str, error_msgs: list[str]
    ) -> None:
        key, inner, projection = (qualified(entry, part) for part in (WEIGHT, INNER, PROJECTION))
        if key not in state_dict or inner in state_dict or projection in state_dict:
            return
        weight, stack = state_dict.pop(key), self.tables_of(name)
        # What is found to load of the factors is what they have.
        own = stack.factors(name)
        state_dict.update({inner: own.inner, projection: own.projection})
        if not isinstance(weight, Tensor):
            error_msgs.append(f"{key} is no tensor")
            return
        try:
            stack.start_from(name, weight.to(own.inner))
        except ValueError as error:
            error_msgs.append(f"size mismatch for {key}: {error}")
