"""What sharded two-layer collections have in common: rows sharded, projections replicated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed as dist
from torch import nn
from torchrec.optim.fused import EmptyFusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer

from mlet.distributed.forms import column_shares, projects_on_shards
from mlet.distributed.projection_rules import ProjectionRule
from mlet.distributed.projections import Projections
from mlet.distributed.table_checks import configs_of, table_shapes
from mlet.errors import ConversionError
from mlet.nn.factored import INNER, PROJECTION, WEIGHT
from mlet.nn.init import INITIALISATIONS


class ShardedFactors:
    """Comes before TorchRec's sharded collection of the k-wide tables W2, which looks them up.

    Its rows and projections go by the names of the unsharded two-layer collection.
    """

    #: Where TorchRec keeps the layers.
    holder: ClassVar[str]

    _projections: Projections
    #: What it was made with.
    given: dict[str, Any]
    _narrow_configs: list[Any]

    def _prepare(self, module: Any, params: Any, env: Any, given: dict[str, Any]) -> None:
        """Before TorchRec's own initialisation.

        Args:
            module: the `TwoLayerCollection`.
            params, env, given: what TorchRec's is given.
        """
        self.given = dict(given)
        self._narrow_configs = configs_of(module)
        widths = {config.name: config.embedding_dim for config in self._narrow_configs}
        made = _projections(module, self._to(), env.process_group)
        shares = {name: _column_shares(params[name]) for name in made}
        on_shards = {
            name
            for name, projection in made.items()
            if projects_on_shards(len(projection), projection.shape[1], shares[name])
        }
        self._projections = Projections(made, widths, on_shards, env.process_group)

    def _make_rules(self, sharding_infos: Iterable[Any]) -> None:
        """The projections' rules, of what FBGEMM is told of the tables."""
        for info in sharding_infos:
            name, fused = info.embedding_config.name, info.fused_params or {}
            projection = self._projections.parameters.get(name)
            if projection is None:
                continue
            shares = _column_shares(info.param_sharding)
            if shares > 1 and is_rowwise(fused):
                raise ConversionError(
                    f"table {name!r}: row-wise Adagrad keeps one number for all columns of a row, "
                    f"and each of {shares} shares of them would keep its own; take EXACT_ADAGRAD "
                    f"or EXACT_SGD, or constrain the planner to other kinds of sharding"
                )
            key = f"{self.holder}.{name}.{PROJECTION}"
            self._projections.rules[name] = ProjectionRule(key, projection, fused)

    def _finish(self, module: Any) -> None:
        """After TorchRec's own initialisation."""
        self._take_projections()
        self._take_values(module)

    @property
    def module_fqn(self) -> str | None:
        """Its name in the model, as the plan has it."""
        name: str | None = self.given.get("module_fqn")
        return name

    @property
    def projections(self) -> dict[str, nn.Parameter]:
        """W1 (k × d) of each two-layer table."""
        return self._projections.parameters

    def narrow_configs(self) -> list[Any]:
        """TorchRec's, of the tables as they are served: d wide."""
        return list(self._narrow_configs)

    def local_shards(self, table: str) -> list[Any]:
        """TorchRec's shards of a table's rows on this process: tensors and where they belong."""
        return list(vars(self)["_model_parallel_name_to_local_shards"][table])

    def _to(self) -> torch.device:
        return self.given.get("device") or torch.device("cpu")

    def _take_projections(self) -> None:
        """Name rows and projections as the unsharded collection does."""
        collection: Any = self
        for name, projection in self.projections.items():
            held = collection.get_submodule(f"{self.holder}.{name}")
            rows = held._parameters.pop(WEIGHT)
            held.register_parameter(INNER, rows)
            held.register_parameter(PROJECTION, projection)
        optimizers = [optimizer for _, optimizer in collection._optim.optimizers]
        for optimizer in optimizers:
            optimizer.params = {self._own_name(k): value for k, value in optimizer.params.items()}
        rules = list(self._projections.rules.values())
        collection._optim = CombinedOptimizer([*optimizers, *rules])
        collection._register_state_dict_hook(_name_rows)

    def _own_name(self, key: str) -> str:
        table, _, last = key.removeprefix(f"{self.holder}.").rpartition(".")
        factored = table in self.projections and last == WEIGHT
        return f"{self.holder}.{table}.{INNER}" if factored else key

    @torch.no_grad()
    def _take_values(self, module: Any) -> None:
        for name, (_, source) in table_shapes(module).items():
            if source.is_meta:
                continue
            values = module.tables.factors(name).inner if name in self.projections else source
            for shard in self.local_shards(name):
                row, column = shard.metadata.shard_offsets
                rows, columns = shard.metadata.shard_sizes
                shard.tensor.copy_(values[row : row + rows, column : column + columns])

    @staticmethod
    def _pre_load_state_dict_hook(
        self: Any, state_dict: dict[str, Any], prefix: str, *others: Any
    ) -> None:
        """TorchRec's, which cuts out what this process has of a table, by TorchRec's names."""
        names = {
            f"{prefix}{self.holder}.{name}.{WEIGHT}": f"{prefix}{self.holder}.{name}.{INNER}"
            for name in self.projections
        }
        for theirs, ours in names.items():
            if ours in state_dict:
                state_dict[theirs] = state_dict.pop(ours)
        torchrec: Any = super(ShardedFactors, type(self))
        torchrec._pre_load_state_dict_hook(self, state_dict, prefix, *others)
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


def is_rowwise(fused: Any) -> bool:
    """Whether FBGEMM is told to train tables by row-wise Adagrad."""
    return bool(fused.get("optimizer") == EmbOptimType.EXACT_ROWWISE_ADAGRAD)


def wide_parameters(module: Any, layers: Any) -> None:
    """Give layers what TorchRec keeps about the optimizers of a collection's tables.

    Args:
        module: the `TwoLayerCollection`.
        layers: by table, of the k-wide collection that takes its place.
    """
    for name, (_, source) in table_shapes(module).items():
        for attribute in ("_optimizer_classes", "_optimizer_kwargs"):
            if hasattr(source, attribute):
                setattr(layers[name].weight, attribute, getattr(source, attribute))


def _column_shares(sharding: Any) -> int:
    return column_shares(shard.shard_offsets for shard in sharding.sharding_spec.shards)


def _name_rows(module: Any, destination: dict[str, Any], prefix: str, _: Any) -> None:
    """After TorchRec's hook, which has put the sharded rows where it knows them."""
    for name in module.projections:
        rows = destination.pop(f"{prefix}{module.holder}.{name}.{WEIGHT}", None)
        if rows is not None:
            destination[f"{prefix}{module.holder}.{name}.{INNER}"] = rows


@torch.no_grad()
def _projections(module: Any, device: torch.device, group: Any) -> dict[str, nn.Parameter]:
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
