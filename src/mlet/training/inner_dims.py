"""``inner_dim: auto``: chosen from the data before training begins, and kept with the run."""

from __future__ import annotations

from collections.abc import Mapping

from mlet.data import PreparedDataset
from mlet.errors import ConfigError
from mlet.models import ModelConfig
from mlet.nn.inner_dim import InnerDim, TableSize, choose_inner_dims
from mlet.training.config import RunConfig
from mlet.training.rare_rows import with_own_rows


def inner_dims_of(model: ModelConfig, data: PreparedDataset) -> dict[str, InnerDim]:
    """What ``inner_dim: auto`` comes to for each table that ``inner_dims`` does not name."""
    counts, dims = data.training_counts, model.dims_of(data.schema)
    tables = {
        field.name: TableSize(field.num_categories, dims[field.name], counts[field.name])
        for field in data.schema.vocabulary_fields
        if field.name not in model.inner_dims
    }
    return choose_inner_dims(tables, budget=model.budget)


def with_inner_dims(config: RunConfig, found: Mapping[str, InnerDim] | None = None) -> RunConfig:
    """A run's settings with numbers, the same on every machine, in the place of what the data
    decides: of ``inner_dim: auto``, of ``dim_exponent``, and of ``min_count``
    (`mlet.training.rare_rows`).

    Tables that ``auto`` leaves ordinary begin as ordinary tables do, and where it leaves all of
    them so they have no bias by ``table_bias: auto``: they are trained as without the recipe.
    ``found`` is what `inner_dims_of` gave, where that was asked for before.

    Raises:
        ConfigError: there is a budget, but nothing that keeps to it.
    """
    config = with_field_dims(with_own_rows(config))
    model = config.model
    if model.inner_dim != "auto" and model.budget is not None:
        raise ConfigError(
            f"model.budget: {model.budget} is what inner_dim: auto keeps to; inner_dim is "
            f"{model.inner_dim}"
        )
    if model.inner_dim != "auto":
        return config.model_copy(
            update={"model": model.model_copy(update={"table_bias": model.biased})}
        )
    if found is None:
        found = inner_dims_of(model, PreparedDataset(config.data))
    values = [chosen.value for chosen in found.values()]
    usual = max(values, key=lambda value: (values.count(value), value or 0), default=None)
    single = {name: chosen.value for name, chosen in found.items() if chosen.value != usual}
    inner_dims = {**model.inner_dims, **single}
    chosen = model.model_copy(update={"inner_dim": usual, "inner_dims": inner_dims, "budget": None})
    ordinary = usual is None and not any(inner_dims.values())
    starts = model.init == "co_occurrence" and ordinary
    settled = {
        "init": "variance_matched" if starts else model.init,
        "table_bias": chosen.biased,
    }
    return config.model_copy(update={"model": chosen.model_copy(update=settled)})


def with_field_dims(config: RunConfig) -> RunConfig:
    """A run's settings with d of every table, where that follows from numbers of categories.

    The numbers are what the run keeps: they stay where a vocabulary grows.
    """
    if not config.model.dim_exponent:
        return config
    given, dims = config.model.field_dims, config.model.dims_of(PreparedDataset(config.data).schema)
    model = config.model.model_copy(update={"field_dims": {**given, **dims}})
    return config.model_copy(update={"model": model})
