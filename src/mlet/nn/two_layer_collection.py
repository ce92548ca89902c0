"""A library's collection of tables with two layers each, looked up together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import nn

from mlet.nn.collection_tables import CollectionTables
from mlet.nn.factored import Factored, Factors, collapse_table, qualified
from mlet.nn.jagged import FeaturesOfTables, JaggedBatch
from mlet.nn.stacked_tables import StackedTables

#: A layer that holds one table alone, by table.
Alone: TypeAlias = Mapping[str, nn.Module]


class TwoLayerCollection(Factored):
    """What both collections have in common: all that TorchRec's has, but for the tables.

    Tables of equal d, k and number of features lie in one matrix, and every such matrix is looked
    up once. A table that goes alone is a layer by itself, as before.
    """

    #: Where TorchRec keeps the layers, and what they are.
    holder: ClassVar[str]
    layer: ClassVar[Any]
    plain: ClassVar[Any]
    #: Whether the vectors of a bag are added up.
    pools: ClassVar[bool]

    #: Of each table what an ordinary layer is made with, its features and what their vectors go
    #: by, and d.
    _options: dict[str, dict[str, Any]]
    _names: dict[str, list[tuple[str, str]]]
    _widths: list[int]

    @classmethod
    def of(
        cls, collection: nn.Module, stacks: Sequence[StackedTables], alone: Alone
    ) -> TwoLayerCollection:
        """The collection with some of its tables in stacks, all of them in their order, and others
        as layers; all else is its own still."""
        made, held = _copied(collection, cls), CollectionTables(stacks, alone)
        before: Any = collection._modules[cls.holder]
        made._modules[cls.holder] = held
        made._options = {name: _options(before[name]) for s in stacks for name in s.sizes}
        made._names = made._names_by_table()
        made._widths = [config.embedding_dim for config in made._configs()]
        for part in (held, held.tables, *stacks):
            part.training = collection.training
        return cast("TwoLayerCollection", made)

    @property
    def tables(self) -> CollectionTables:
        """The tables, by name."""
        held = self._modules[self.holder]
        assert isinstance(held, CollectionTables)
        return held

    def _configs(self) -> list[Any]:
        """TorchRec's, of as many categories as there are now."""
        raise NotImplementedError

    def _grown(self, configs: Sequence[Any]) -> list[Any]:
        found = []
        for config in configs:
            name = config.name
            rows = config.num_embeddings
            if name in self.tables.table_names:
                rows = self.tables.tables_of(name).sizes[name]
            same = rows == config.num_embeddings
            found.append(config if same else replace(config, num_embeddings=rows))
        return found

    def _names_by_table(self) -> dict[str, list[tuple[str, str]]]:
        """Of each table its features, and what their vectors go by."""
        raise NotImplementedError

    def _batch(self, features: Any, *, weighted: bool) -> JaggedBatch:
        values, lengths = features.values(), features.lengths()
        if values.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"the values of features must be int32 or int64, got {values.dtype}")
        count = len(features.keys())
        if features.variable_stride_per_key():
            parts = torch.split(lengths, features.stride_per_key())
            # Rows that a feature does not have are empty bags.
            lengths = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
        return JaggedBatch(
            values,
            lengths.view(count, -1) if count else lengths.view(0, 0),
            features.offset_per_key(),
            features.weights() if weighted else None,
        )

    def _asked(self, stack: StackedTables, features: Any) -> FeaturesOfTables:
        """Raises KeyError: a feature that is not there, as TorchRec does."""
        place, names = features.index_per_key(), self._names
        return FeaturesOfTables(
            stack,
            [[place[feature] for feature, _ in names[table]] for table in stack.sizes],
            [self._options[table].get("mode") == "mean" for table in stack.sizes],
        )

    def named_factors(self) -> dict[str, Factors]:
        """Of the tables in stacks."""
        tables = self.tables
        return {qualified(self.holder, n): tables.factors(n) for n in tables.table_names}

    def factor_parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """A pair for each stack."""
        for stack in self.tables.stacks():
            yield from stack.factor_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors of all stacks afresh; and what goes alone."""
        for stack in self.tables.stacks():
            stack.reset_parameters()
        for name, layer in self.tables.named_children():
            if name != "tables":
                cast("Any", layer).reset_parameters()

    def collapse(self) -> nn.Module:
        """TorchRec's own class with ordinary tables; what went alone is still as it is."""
        plain = _copied(self, self.plain)
        del plain._options, plain._names, plain._widths
        layers, tables = nn.ModuleDict(), self.tables
        for config in self._configs():
            name = config.name
            if name not in tables.table_names:
                layers[name] = tables.get_submodule(name)
                continue
            factors = tables.factors(name)
            assert factors.projection is not None
            weight = collapse_table(factors.inner, factors.projection)
            options = {**self._options[name], "sparse": tables.tables_of(name).sparse}
            made = self.layer(*weight.shape, _weight=weight, **options).train(self.training)
            layers[name] = made.requires_grad_(tables.tables_of(name).inner.requires_grad)
        layers.training = self.training
        plain._modules[self.holder] = layers
        self._keep_configs(plain)
        return cast("nn.Module", plain)

    def _keep_configs(self, plain: Any) -> None:
        raise NotImplementedError


def _options(layer: nn.Module) -> dict[str, Any]:
    """What an ordinary layer of a table is made with."""
    if isinstance(layer, nn.EmbeddingBag):
        return {"mode": layer.mode, "include_last_offset": layer.include_last_offset}
    return {}


def _copied(module: nn.Module, kind: Any) -> Any:
    """An instance of another class with the same parts."""
    made = kind.__new__(kind)
    vars(made).update(vars(module))
    vars(made)["_modules"] = dict(vars(module)["_modules"])
    return made
