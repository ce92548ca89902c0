"""Which tables of a two-layer collection can be sharded, and how."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel

from mlet.errors import ConversionError
from mlet.nn.factored import WEIGHT

#: What FBGEMM's kernels take for the width of a row: multiples of this.
WIDTH_STEP = 4


def configs_of(collection: Any) -> list[Any]:
    """TorchRec's, of the tables of a collection of either kind."""
    pools = hasattr(collection, "embedding_bag_configs")
    configs = collection.embedding_bag_configs() if pools else collection.embedding_configs()
    return list(configs)


def table_shapes(module: Any) -> dict[str, tuple[tuple[int, int], nn.Parameter]]:
    """Of each table the shape of its rows, n × k, or n × d of an ordinary one, and the parameter
    that they are in.

    Args:
        module: a `TwoLayerCollection`.
    """
    found: dict[str, tuple[tuple[int, int], nn.Parameter]] = {}
    for config in configs_of(module):
        name, tables = config.name, module.tables
        if name in tables.table_names:
            stack = tables.tables_of(name)
            assert stack.inner_dim is not None
            found[name] = ((config.num_embeddings, stack.inner_dim), stack.stacked)
        else:
            weight: Any = tables.get_submodule(name)._parameters.get(WEIGHT)
            found[name] = ((config.num_embeddings, config.embedding_dim), weight)
    return found


def shardable(module: Any) -> dict[str, nn.Parameter]:
    """Of each table a parameter of the shape of its rows, without values, as planners want them."""
    found = {}
    for table, (shape, source) in table_shapes(module).items():
        made = nn.Parameter(torch.empty(shape, dtype=source.dtype, device="meta"))
        for name in ("_optimizer_classes", "_optimizer_kwargs"):
            if hasattr(source, name):
                setattr(made, name, getattr(source, name))
        found[table] = made
    return found


def fused_kernels(compute_device_type: str) -> list[str]:
    """FBGEMM's, fused with their optimizer."""
    kernels = [EmbeddingComputeKernel.FUSED]
    if compute_device_type == "cuda":
        kernels += [EmbeddingComputeKernel.FUSED_UVM, EmbeddingComputeKernel.FUSED_UVM_CACHING]
    return [kernel.value for kernel in kernels]


def check_tables(
    module: Any, params: Mapping[str, Any], served: Collection[str], because: str
) -> None:
    """Raises ConversionError: a table cannot be sharded, or not as planned.

    Args:
        module: a `TwoLayerCollection`.
        params: its plan.
        served: kinds of sharding.
        because: why others are not.
    """
    for name, (_, source) in table_shapes(module).items():
        plan = params.get(name)
        kind = "by no plan" if plan is None else plan.sharding_type
        reason = None
        if source is None:
            reason = (
                "it is a layer by itself, which has something of its own (a hook, a dtype, an "
                "option); convert a collection of plain float32 tables"
            )
        elif kind not in served:
            reason = (
                f"it cannot be sharded {kind}, only {', '.join(served)}: constrain the planner to "
                f"those ({because})"
            )
        elif source.dtype != torch.float32:
            reason = f"FBGEMM's kernels train float32 tables, not {source.dtype}"
        elif not source.requires_grad:
            reason = "it is frozen, and FBGEMM would train it; freeze it by a step size of 0"
        else:
            widths = {shard.shard_sizes[1] for shard in params[name].sharding_spec.shards}
            unfit = sorted(width for width in widths if width % WIDTH_STEP)
            if unfit:
                reason = (
                    f"its rows are {unfit[0]} wide and FBGEMM takes multiples of {WIDTH_STEP}; "
                    f"choose k, or the plan's shares of columns, accordingly"
                )
        if reason is not None:
            raise ConversionError(f"table {name!r} of a sharded collection: {reason}")
