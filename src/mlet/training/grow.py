"""Going on with a model that was trained before, on data that extends its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlet import surgery
from mlet.data import DatasetSchema, PreparedDataset
from mlet.data.identity import check_extension, fingerprint
from mlet.errors import ConfigError, RunError
from mlet.export import CollapsedModel, load_collapsed_model
from mlet.models import CTRModel, ModelConfig, build_model
from mlet.nn import FieldEmbedding
from mlet.nn.factored import qualified
from mlet.nn.growth import NewRows
from mlet.reading import write_sealed
from mlet.settings import first_difference, merge
from mlet.training.config import GrowConfig, RunConfig
from mlet.training.optimizers import Optimizers
from mlet.training.presets import RECIPE, with_preset
from mlet.training.run import RunDirectory
from mlet.training.weights import copy_besides

#: Settings of a model that a collapsed one has none of: how its tables are kept in training.
_OF_TRAINING = (
    "inner_dim",
    "inner_dims",
    "budget",
    "init",
    "init_scale",
    "table_bias",
    "table_dtype",
    "train_projection",
)


def with_grown(given: Mapping[str, Any], preset: str = RECIPE) -> dict[str, Any]:
    """The settings that the user gave, over those of what the model goes on from.

    Of a run these are its own; of a collapsed file its model's, and the preset's of how its tables
    are trained.

    Args:
        given: the settings of a run, with ``grow.run``.
        preset: see `mlet.training.presets`.

    Raises:
        RunError: there is nothing to go on from.
        ConfigError: another model is asked for.
    """
    source = GrowConfig.parse(given["grow"], "grow").run
    if source.is_dir():
        own = {"data", "start", "grow", "log"}  # where a run is, began and logs
        base = RunDirectory(source).config().model_dump(mode="json", exclude=own)
    else:
        model = load_collapsed_model(source).config.model_dump(mode="json")
        base = {"model": {k: v for k, v in model.items() if k not in _OF_TRAINING}}
    asked = given.get("model", {}).get("name")
    if asked not in (None, base["model"]["name"]):
        raise _another(source, f"model.name ({base['model']['name']} then, {asked} now)")
    for part, settings in given.get("optimizer", {}).items():
        name = settings.get("name") if isinstance(settings, Mapping) else None
        known = base.get("optimizer", {}).get(part)
        if known is not None and name not in (None, known["name"]):
            del base["optimizer"][part]  # another method's step size says nothing of this one's
    merged = merge(base, given)
    return merged if source.is_dir() else with_preset(preset, merged)


def check_growth(config: RunConfig, data: PreparedDataset) -> None:
    """Refuse a run that cannot go on from what it is to.

    Raises:
        ConfigError: its model, or its optimizers while their states are to go on, are others.
        RunError: that is not finished, cannot be read, or the data does not extend its own.
    """
    if config.grow is not None:
        _source(config, config.grow, data)


def grow_model(
    config: RunConfig,
    model: CTRModel,
    optimizers: Optimizers,
    data: PreparedDataset,
    run: RunDirectory,
) -> None:
    """Fill a new run's model, and the states of its optimizers, with what it goes on from; rows of
    new categories begin as that of the unknown one, and noise. Keeps with the run what that was.

    Raises:
        ConfigError, RunError: as `check_growth`.
        UserWarning: (warning) the optimizers' states begin anew, though that was not asked for.
    """
    grow = config.grow
    assert grow is not None
    source = _source(config, grow, data)
    if isinstance(source, CollapsedModel):
        _fill(model, source.model, grow)
        schema, states, reason = source.schema, False, "a collapsed file holds none"
    else:
        schema = source.run.schema()
        states = grow.states and source.run.has_state
        reason = f"{grow.run} kept none (training.keep_state)"
        old = build_model(source.config.model, schema)
        _load(source.run, old, source.run.load_best()["model"])
        kept = Optimizers(source.config.optimizer, old, config.training.batch_size)
        if states:
            last = source.run.load_last() or {}
            try:
                kept.load_state_dict(last["optimizers"])
            except (AttributeError, IndexError, KeyError, TypeError, ValueError):
                raise _damaged(source.run, "last") from None
        surgery.grow(old, _sizes(old, data.schema), optimizer=kept.all, start=0, noise=grow.noise)
        model.load_state_dict(old.state_dict())
        if states:
            optimizers.go_on_from(kept)
    if grow.states and not states:
        warnings.warn(f"optimizer states start anew: {reason}", UserWarning, stacklevel=2)
    then = {field.name: field.num_categories for field in schema.fields}
    record = {
        "run": str(grow.run),
        "run_seal": None if isinstance(source, CollapsedModel) else source.run.seal(),
        "data": fingerprint(schema),
        "states": states,
        "fields": {
            field.name: {"then": then[field.name], "now": field.num_categories}
            for field in data.schema.fields
        },
    }
    write_sealed(run.grown_file, record)


@dataclass(frozen=True)
class _Run:
    run: RunDirectory
    config: RunConfig


def _source(config: RunConfig, grow: GrowConfig, data: PreparedDataset) -> _Run | CollapsedModel:
    """What a run goes on from, found to be possible."""
    if config.model.own_rows:
        raise ConfigError(
            f"{grow.run} cannot go on with rare categories that share rows (model.min_count): new "
            f"ones would have none of their own; train anew on all rows"
        )
    if not grow.run.is_dir():
        found = load_collapsed_model(grow.run)
        if found.config.compression is not None:
            raise RunError(f"{grow.run}: its tables are compressed; only ordinary ones can grow")
        _check_models(
            grow.run, found.config.single_layer(), config.model.single_layer(), _OF_TRAINING
        )
        check_extension(found.schema, data, grow.run)
        return found
    run = RunDirectory(grow.run)
    before = run.config()
    run.summary()
    if not run.schema_file.exists():
        raise RunError(
            f"{grow.run}: a run of mlet 0.1, which does not say what its rows stand for; train it "
            f"again, or go on from {run.model_file}"
        )
    _check_models(grow.run, before.model, config.model)
    if grow.states and run.has_state:
        for part in ("tables", "dense"):
            then, now = (getattr(one.optimizer, part).name for one in (before, config))
            if then != now:
                raise _another(
                    grow.run,
                    f"optimizer.{part}.name ({then} then, {now} now)",
                    "optimizer states are others then: grow.states=false begins them anew",
                )
    check_extension(run.schema(), data, grow.run)
    return _Run(run, before)


def _check_models(
    source: Path, then: ModelConfig, now: ModelConfig, but: tuple[str, ...] = ()
) -> None:
    """Refuse to go on with another model.

    Raises:
        ConfigError: a setting is another; names it, and both values.
    """
    one, other = (each.model_dump(mode="json", exclude=set(but)) for each in (then, now))
    place = first_difference(one, other, "model")
    if place is None:
        return
    remedy = "leave it out"
    if place.split(".")[1].split()[0] in _OF_TRAINING:
        remedy += ", or go on from its collapsed file, whose tables may be kept in another way"
    raise _another(source, place, remedy)


def _another(source: Path, place: str, remedy: str = "leave it out") -> ConfigError:
    return ConfigError(f"{source} cannot go on with another {place}; {remedy}")


def _sizes(model: nn.Module, schema: DatasetSchema) -> dict[str, int]:
    """How many categories every table of a model is to have."""
    rows = {field.name: field.num_categories for field in schema.fields}
    return {
        qualified(name, field): rows[field]
        for name, part in model.named_modules()
        if isinstance(part, FieldEmbedding)
        for field in part.table_names
    }


def _load(run: RunDirectory, model: nn.Module, state: Any) -> None:
    try:
        model.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError):
        raise _damaged(run, "best") from None


def _damaged(run: RunDirectory, which: str) -> RunError:
    return RunError(
        f"{run.root}: its {which} checkpoint does not fit its configuration; train the run again"
    )


@torch.no_grad()
def _fill(model: nn.Module, source: nn.Module, grow: GrowConfig) -> None:
    """Fill a model with a collapsed one of fewer categories.

    Raises:
        RunError: their other weights are not of the same shapes.
    """
    tables = {n: part for n, part in model.named_modules() if isinstance(part, FieldEmbedding)}
    known = dict(source.named_modules())
    for name, part in tables.items():
        given = known[name]
        assert isinstance(given, FieldEmbedding)
        for field in part.table_names:
            table = given.table(field)
            rows = part.tables_of(field).sizes[field]
            part.start_from(field, torch.cat([table, NewRows(rows, 0, grow.noise).of(table)]))
    origin = f"the model of {grow.run}"
    copy_besides(tables, model, source, origin=origin, remedy="go on with the same model")
