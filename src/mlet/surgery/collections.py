"""TorchRec's collections, whose tables are looked up together once they are converted."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mlet.errors import ConversionError
from mlet.nn.factored import WEIGHT
from mlet.nn.init import InitName
from mlet.nn.stacked_tables import StackedTables
from mlet.nn.two_layer_collection import TwoLayerCollection
from mlet.surgery.modules import hooks_of
from mlet.surgery.ties import tied_to

#: Where TorchRec has its collections: they are in no model of a process that has not imported it.
_TORCHREC = "torchrec.modules.embedding_modules"
#: And what shards them, ours.
_SHARDED = "mlet.distributed.sharded_factors"


@dataclass(frozen=True)
class Collection:
    """One whose tables, or some of them, are looked up together.

    Attributes:
        module: in the model.
        kind: what takes its place.
        tables: its own names of the tables, by qualified name.
    """

    module: nn.Module
    kind: type[TwoLayerCollection]
    tables: Mapping[str, str]

    def converted(
        self, sizes: Mapping[str, int], init: InitName, *, preserve: bool
    ) -> TwoLayerCollection:
        """What takes its place, with the same options, dtypes, devices and modes.

        Args:
            sizes: k of each table by qualified name.
            init: how factors are drawn.
            preserve: let them hold the tables there are instead.
        """
        held: Any = self.module._modules[self.kind.holder]
        groups: dict[Any, dict[str, Any]] = defaultdict(dict)
        features = {config.name: len(config.feature_names) for config in _configs(self.module)}
        weighted = self.kind.pools and _is_weighted(self.module)
        for name, own in self.tables.items():
            table, weight = held[own], held[own].weight
            # Unweighted bags are pooled by the engine: of as many features in every table.
            many = features[own] if self.kind.pools and not weighted else None
            numbers = (weight.dtype, weight.device, weight.requires_grad)
            kind = (table.embedding_dim, sizes[name], many, table.sparse, numbers)
            groups[kind][own] = table
        stacks = []
        for (dim, k, *_), tables in groups.items():
            first = next(iter(tables.values()))
            rows = {own: table.num_embeddings for own, table in tables.items()}
            with torch.device(first.weight.device):
                stack = StackedTables(rows, dim, k, init=init, sparse=first.sparse)
            stack.to(first.weight.dtype)
            if preserve:
                for own, table in tables.items():
                    stack.start_from(own, table.weight.detach())
            stacks.append(stack.requires_grad_(first.weight.requires_grad))
        stacked = set(self.tables.values())
        alone = {own: table for own, table in held.items() if own not in stacked}
        return self.kind.of(self.module, stacks, alone)


def collections_of(model: nn.Module, tables: Mapping[str, nn.Module]) -> list[Collection]:
    """The collections in a model with tables that are to be converted together.

    A table that has something of its own, which its rows among others' would not have, is none of
    them: it becomes a layer by itself, and a collection without others stays as it is.

    Args:
        model: all of it.
        tables: those to be converted, by qualified name.
    """
    if _TORCHREC not in sys.modules:
        return []
    from mlet.nn.torchrec_collections import KINDS

    names = {id(table): name for name, table in tables.items()}
    found = []
    for module in model.modules():
        kind = KINDS.get(type(module))
        if kind is None or not _is_ordinary(module, kind.holder):
            continue
        held: Any = module._modules[kind.holder]
        mine = {
            names[id(table)]: own
            for own, table in held.items()
            if id(table) in names and _may_be_stacked(model, table)
        }
        modes = {held[own].mode for own in mine.values()} if kind.pools else set()
        if modes - {"sum"} and _is_weighted(module):
            continue  # torch has no weighted means: as before, the lookup says so
        if mine and "tables" not in held:
            found.append(Collection(module, kind, mine))
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether there are sharded two-layer collections in a model."""
    if _SHARDED not in sys.modules:
        return False
    from mlet.distributed.sharded_factors import ShardedFactors

    return any(isinstance(m, ShardedFactors) for m in model.modules())


def check_unsharded(model: nn.Module) -> None:
    """Raises ConversionError: TorchRec has sharded a part of the model."""
    if "torchrec.distributed.types" not in sys.modules:
        return
    from torchrec.distributed.types import ShardedModule

    for name, module in model.named_modules():
        if isinstance(module, ShardedModule):
            raise ConversionError(
                f"{name!r} has been sharded by a plan for tables as wide as they were: convert the "
                f"model first, on the meta device if need be, then plan and shard it"
            )


def _configs(collection: Any) -> Any:
    pooled = hasattr(collection, "embedding_bag_configs")
    return collection.embedding_bag_configs() if pooled else collection.embedding_configs()


def _is_weighted(collection: Any) -> bool:
    return bool(collection.is_weighted())


def _is_ordinary(collection: nn.Module, holder: str) -> bool:
    """Whether a collection is what TorchRec makes."""
    held = collection._modules.get(holder)
    if type(held) is not nn.ModuleDict or hooks_of(held) or "forward" in vars(collection):
        return False
    if collection._parameters or collection._buffers or len(collection._modules) > 1:
        return False
    return list(held) == [config.name for config in _configs(collection)]


def _may_be_stacked(model: nn.Module, table: nn.Module) -> bool:
    """Whether a table is a matrix in one place, and nothing else."""
    weight: Any = table._parameters[WEIGHT]
    if type(table) not in (nn.Embedding, nn.EmbeddingBag) or hooks_of(table):
        return False
    attached = [*vars(weight), *(set(vars(table)) - set(vars(type(table)(1, 1))))]
    if any(not name.startswith("_") for name in attached):
        return False
    options: Any = table
    bag = isinstance(table, nn.EmbeddingBag)
    if bag and (options.mode == "max" or not options.include_last_offset):
        return False
    if options.padding_idx is not None or options.max_norm is not None:
        return False
    if options.scale_grad_by_freq:
        return False
    dense = type(weight) is nn.Parameter and weight.layout == torch.strided
    if not dense or weight.dtype not in (torch.float32, torch.float64):
        return False
    return len(list(_holders(model, table))) == 1 and not tied_to(model, table)


def _holders(model: nn.Module, table: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        for child in module._modules.values():
            if child is table:
                yield module
