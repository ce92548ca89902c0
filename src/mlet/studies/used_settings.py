"""The settings of a study that some arm used, for its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mlet.studies.study import RANGES, StudyConfig

#: What an arm has for its own, or what only two layers have.
_REPLACED = ("dim", "inner_dim")
_OF_TWO_LAYERS = ("inner_dims", "budget", "init", "train_projection")
_OF_PROJECTIONS = ("projection_lr", "matched_steps")
_OF_PREPARATION = ("split", "valid", "test", "seed", "min_count")


def used_settings(study: StudyConfig) -> str:
    """YAML without what every arm replaced or tuned, what is null, and what no arm's kind has.

    ``study.yaml``, beside the page, holds them all.
    """
    values = study.model_dump(mode="json")
    two_layers = bool(study.inner_dims) or any(
        changes.get("inner_dim") for changes in study.peers.values()
    )
    for dataset in values["datasets"].values():
        if dataset["prepared"] is not None:
            _drop(dataset, *_OF_PREPARATION)
    for model in values["models"].values():
        _drop(model, *_REPLACED, *(() if two_layers else _OF_TWO_LAYERS))
        if study.tuning.init_scale is not None:
            _drop(model, "init_scale")
    for optimizer in values["optimizers"].values():
        _drop(optimizer["tables"], *(() if two_layers else _OF_PROJECTIONS))
        _drop_tuned(optimizer, study)
    if study.tuning.learning_rates is not None:
        _drop(values["tuning"], "trials", "span")
    if not study.inner_dims:
        _drop(values, "mlet")
    _drop(values["training"], "seed")
    return yaml.safe_dump(_given(values), sort_keys=False)


def _drop_tuned(optimizer: dict[str, Any], study: StudyConfig) -> None:
    """Without what each arm chose; a step size that keeps its ratio to the tables' is said so."""
    tables, dense = optimizer["tables"], optimizer["dense"]
    ranges = [name for name in RANGES if name in study.tuning.ranges]
    _drop(tables, *ranges)
    if "dense_learning_rate" in ranges:
        _drop(dense, "learning_rate")
    elif study.tuning.learning_rates is not None:
        ratio = dense["learning_rate"] / tables["learning_rate"]
        dense["learning_rate"] = f"{ratio:g} × the tables'"
    if study.tuning.learning_rates is not None:
        _drop(tables, "learning_rate")


def _drop(values: dict[str, Any], *names: str) -> None:
    for name in names:
        values.pop(name, None)


def _given(value: Any) -> Any:
    """Without nulls and what is empty, at every depth."""
    if not isinstance(value, Mapping):
        return value
    inner = {key: _given(one) for key, one in value.items()}
    return {key: one for key, one in inner.items() if one not in (None, [], {})}
