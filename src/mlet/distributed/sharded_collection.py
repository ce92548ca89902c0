"""A two-layer collection on many processes: its rows sharded, its projections replicated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.fused import EmptyFusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer

from mlet.distributed.projection_rules import ProjectionRule
from mlet.distributed.projections import Projections
from mlet.distributed.shardings import SHARDINGS
from mlet.errors import ConversionError
from mlet.nn.factored import INNER, PROJECTION, WEIGHT
from mlet.nn.init import INITIALISATIONS
from mlet.nn.torchrec_collections import TwoLayerEmbeddingBagCollection

#: What FBGEMM's kernels take for the width of a row: multiples of this.
WIDTH_STEP = 4


class ShardedTwoLayerEmbeddingBagCollection(ShardedEmbeddingBagCollection):  # type: ignore[misc]
    """TorchRec's sharded collection of the k-wide tables W2, with projections W1 on the way out.

    A shard looks up, pools and projects; what is exchanged is d wide. W2 is trained by FBGEMM in
    the backward pass; W1, of which every process has a copy, in the same pass by the same rule. The
    ``state_dict`` has the names of the unsharded two-layer collection.

    What the given collection holds is kept, unless it is on the meta device: then factors are drawn
    as it says.

    Args:
        module: the collection.
        others: TorchRec's.

    Raises:
        ConversionError: a table cannot be sharded, or is not the same on all processes.
    """

    def __init__(
        self, module: TwoLayerEmbeddingBagCollection, params: Any, env: Any, **others: Any
    ) -> None:
        _check(module, params)
        group = env.process_group
        device = others.get("device") or torch.device("cpu")
        made = _projections(module, device, group)
        widths = {config.name: config.embedding_dim for config in module.embedding_bag_configs()}
        self._projections = Projections(made, widths, group)
        self.given = dict(others)
        self._narrow_configs = list(module.embedding_bag_configs())
        super().__init__(_wide(module), params, env, **others)
        self._take_projections()
        self._take_means(device)
        self._take_values(module)

    def create_embedding_bag_sharding(self, sharding_infos: Any, *others: Any, **more: Any) -> Any:
        """TorchRec's, d wide outside. It makes the projections' rules of what FBGEMM is told."""
        for info in sharding_infos:
            name = info.embedding_config.name
            projection = self._projections.parameters.get(name)
            if projection is not None:
                key = f"embedding_bags.{name}.{PROJECTION}"
                rule = ProjectionRule(key, projection, info.fused_params or {})
                self._projections.rules[name] = rule
        kind = SHARDINGS[sharding_infos[0].param_sharding.sharding_type]
        more.pop("permute_embeddings", None)
        return kind(self._projections, sharding_infos, *others, **more)

    def embedding_bag_configs(self) -> list[Any]:
        """TorchRec's, of the tables as they are served: d wide."""
        return list(self._narrow_configs)

    @property
    def module_fqn(self) -> str | None:
        """Its name in the model, as the plan has it."""
        name: str | None = self.given.get("module_fqn")
        return name

    @property
    def projections(self) -> dict[str, nn.Parameter]:
        """W1 (k × d) of each two-layer table."""
        return self._projections.parameters

    def local_shards(self, table: str) -> list[Any]:
        """TorchRec's shards of a table's rows on this process: tensors and where they belong."""
        return list(self._model_parallel_name_to_local_shards[table])

    def input_dist(self, ctx: Any, features: Any) -> Any:
        """TorchRec's, dividing by a bag's length where means are summed in parts, and only there:
        its own would divide by it all features of a collection that has such a table."""
        found = super().input_dist(ctx, features)
        if self._has_mean_pooling_callback:
            ctx.divisor = torch.where(self._averaged, ctx.divisor, 1.0)
        return found

    def _take_means(self, device: torch.device) -> None:
        self._pooling_type_to_rs_features[PoolingType.SUM.value] = []
        averaged = [one for sharding in self._embedding_shardings for one in sharding.averaged()]
        columns = zip(averaged, self._embedding_dims, strict=True)
        self._averaged = torch.tensor(
            [one for one, width in columns for _ in range(width)], device=device
        )

    def _take_projections(self) -> None:
        """Name rows and projections as the unsharded collection does."""
        for name, projection in self.projections.items():
            held: Any = self.embedding_bags[name]
            rows = held._parameters.pop(WEIGHT)
            held.register_parameter(INNER, rows)
            held.register_parameter(PROJECTION, projection)
        combined: Any = vars(self)["_optim"]
        optimizers = [optimizer for _, optimizer in combined.optimizers]
        for optimizer in optimizers:
            optimizer.params = {self._own_name(k): value for k, value in optimizer.params.items()}
        rules = list(self._projections.rules.values())
        self._optim = CombinedOptimizer([*optimizers, *rules])
        self._register_state_dict_hook(_name_rows)

    def _own_name(self, key: str) -> str:
        table, _, last = key.removeprefix("embedding_bags.").rpartition(".")
        factored = table in self.projections and last == WEIGHT
        return f"embedding_bags.{table}.{INNER}" if factored else key

    @torch.no_grad()
    def _take_values(self, module: TwoLayerEmbeddingBagCollection) -> None:
        for name, (_, source) in table_shapes(module).items():
            if source.is_meta:
                continue
            values = module.tables.factors(name).inner if name in self.projections else source
            for shard in self.local_shards(name):
                (row, _), (rows, _) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                shard.tensor.copy_(values[row : row + rows])

    @staticmethod
    def _pre_load_state_dict_hook(
        self: Any, state_dict: dict[str, Any], prefix: str, *others: Any
    ) -> None:
        """TorchRec's, which cuts out what this process has of a table, by TorchRec's names."""
        names = {
            f"{prefix}embedding_bags.{name}.{WEIGHT}": f"{prefix}embedding_bags.{name}.{INNER}"
            for name in self.projections
        }
        for theirs, ours in names.items():
            if ours in state_dict:
                state_dict[theirs] = state_dict.pop(ours)
        ShardedEmbeddingBagCollection._pre_load_state_dict_hook(self, state_dict, prefix, *others)
        for theirs, ours in names.items():
            if theirs in state_dict:
                state_dict[ours] = state_dict.pop(theirs)

    def update_shards(self, *_: Any, **__: Any) -> None:
        """Not of two-layer tables.

        Raises:
            ConversionError: always.
        """
        raise ConversionError(
            "two-layer tables are not resharded while they train: save a checkpoint and load it "
            "under the other plan"
        )

    @property
    def unsharded_module_type(self) -> type[TwoLayerEmbeddingBagCollection]:
        """What was sharded."""
        return TwoLayerEmbeddingBagCollection


def _name_rows(module: Any, destination: dict[str, Any], prefix: str, _: Any) -> None:
    """After TorchRec's hook, which has put the sharded rows where it knows them."""
    for name in module.projections:
        rows = destination.pop(f"{prefix}embedding_bags.{name}.{WEIGHT}", None)
        if rows is not None:
            destination[f"{prefix}embedding_bags.{name}.{INNER}"] = rows


def table_shapes(
    module: TwoLayerEmbeddingBagCollection,
) -> dict[str, tuple[tuple[int, int], nn.Parameter]]:
    """Of each table the shape of its rows, n × k, or n × d of an ordinary one, and the parameter
    that they are in."""
    found: dict[str, tuple[tuple[int, int], nn.Parameter]] = {}
    for config in module.embedding_bag_configs():
        name, tables = config.name, module.tables
        if name in tables.table_names:
            stack = tables.tables_of(name)
            assert stack.inner_dim is not None
            found[name] = ((config.num_embeddings, stack.inner_dim), stack.stacked)
        else:
            weight: Any = tables.get_submodule(name)._parameters.get(WEIGHT)
            found[name] = ((config.num_embeddings, config.embedding_dim), weight)
    return found


def _check(module: TwoLayerEmbeddingBagCollection, params: Mapping[str, Any]) -> None:
    """Raises ConversionError: a table cannot be sharded, or not as planned."""
    for name, ((_, width), source) in table_shapes(module).items():
        sharding = params[name].sharding_type if name in params else "by no plan"
        reason = None
        if source is None:
            reason = (
                "it is a layer by itself, which has something of its own (a hook, a dtype, an "
                "option); convert a collection of plain float32 tables"
            )
        elif sharding not in SHARDINGS:
            reason = (
                f"it cannot be sharded {sharding}, only {', '.join(SHARDINGS)}: constrain the "
                f"planner to those (columns of W2 would each need a sum of all, and a copy of "
                f"all rows on every process is what sharding is to spare)"
            )
        elif source.dtype != torch.float32:
            reason = f"FBGEMM's kernels train float32 tables, not {source.dtype}"
        elif width % WIDTH_STEP:
            reason = f"its rows are {width} wide and FBGEMM takes multiples of {WIDTH_STEP}"
        elif not source.requires_grad:
            reason = "it is frozen, and FBGEMM would train it; freeze it by a step size of 0"
        if reason is not None:
            raise ConversionError(f"table {name!r} of a sharded collection: {reason}")


def _wide(module: TwoLayerEmbeddingBagCollection) -> EmbeddingBagCollection:
    """TorchRec's collection of the rows alone, without values."""
    shapes = table_shapes(module)
    configs = [
        replace(config, embedding_dim=shapes[config.name][0][1], init_fn=None)
        for config in module.embedding_bag_configs()
    ]
    made = EmbeddingBagCollection(
        tables=configs,
        is_weighted=EmbeddingBagCollection.is_weighted(module),
        device=torch.device("meta"),
    )
    bags: Any = made.embedding_bags
    for name, (_, source) in shapes.items():
        for attribute in ("_optimizer_classes", "_optimizer_kwargs"):
            if hasattr(source, attribute):
                setattr(bags[name].weight, attribute, getattr(source, attribute))
    return made


@torch.no_grad()
def _projections(
    module: TwoLayerEmbeddingBagCollection, device: torch.device, group: Any
) -> dict[str, nn.Parameter]:
    """A copy of W1 of each table, the first process's on all.

    Raises:
        ConversionError: processes hold different ones, so that their rows do not fit together.
    """
    made = {}
    for name in module.tables.table_names:
        stack, held = module.tables.tables_of(name), module.tables.factors(name).projection
        assert held is not None
        if held.is_meta:
            values = torch.empty(held.shape, device=device)
            INITIALISATIONS[stack.init](values.new_empty(1, 1), values)
        else:
            values = held.to(device, copy=True)
        first = values.clone()
        dist.broadcast(first, dist.get_global_rank(group, 0), group=group)
        differs = torch.tensor(int(not held.is_meta and not torch.equal(first, values)))
        dist.all_reduce(differs.to(device), dist.ReduceOp.MAX, group=group)
        if int(differs):
            raise ConversionError(
                f"table {name!r}: the processes hold different projections, to which the rows of "
                f"one another do not belong; seed all alike before the model is built, or build it "
                f"on the meta device"
            )
        made[name] = nn.Parameter(first)
        made[name]._in_backward_optimizers = [EmptyFusedOptimizer()]  # type: ignore[attr-defined]
    return made
