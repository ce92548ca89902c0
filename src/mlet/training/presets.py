"""Named settings to start from, and the recipe that commands start from by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlet.errors import ConfigError
from mlet.settings import merge

#: The recipe's model settings: chosen on debdeps, confirmed in docs/results.md.
RECIPE_MODEL: dict[str, Any] = {"inner_dim": "auto", "init": "co_occurrence", "table_bias": "auto"}

#: Step sizes of tables and of dense layers, by the tables' optimizer.
_RATES = {
    "sgd": (0.1, 0.1),
    "adagrad": (0.1, 0.03),
    "rowwise_adagrad": (0.1, 0.03),
    "adam": (0.002, 0.002),
}


def recipe_optimizer(name: str = "adagrad") -> dict[str, Any]:
    """The recipe's settings of the optimizers, for tables of two layers and of one."""
    if name not in _RATES:
        return {}  # refused with the rest of the settings, where all names are known
    tables, dense = _RATES[name]
    damping = {} if name == "sgd" else {"damping": 0.5}
    return {
        "tables": {"name": name, "learning_rate": tables, "matched_steps": True, **damping},
        "dense": {
            "name": "adagrad" if name == "rowwise_adagrad" else name,
            "learning_rate": dense,
        },
    }


def recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that the recipe puts in the place of what is not given.

    Whoever gives null for ``inner_dim`` gets single-layer tables without the rest of the recipe;
    compressed tables are made in their own way.

    Args:
        given: the settings of a run that the user chose.
    """
    return {"model": recipe_model(_part(given, "model")), "optimizer": _optimizer_for(given)}


def recipe_model(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model of which some settings are given, those that the recipe adds."""
    own = given.get("inner_dims")
    some = any(own.values()) if isinstance(own, Mapping) else bool(own)
    single = "inner_dim" in given and given["inner_dim"] is None and not some
    if single or given.get("compression") is not None:
        return {}
    return {name: value for name, value in RECIPE_MODEL.items() if name not in given}


def _optimizer_for(given: Mapping[str, Any]) -> dict[str, Any]:
    optimizer = _part(given, "optimizer")
    tables, dense = _part(optimizer, "tables"), _part(optimizer, "dense")
    found = recipe_optimizer(str(tables.get("name", "adagrad")))
    if found and dense.get("name") not in (None, found["dense"]["name"]):
        del found["dense"]  # another method's step size says nothing of this one's
    return found


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of some settings; what is none is refused where all settings are read."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


#: The authors' settings, from their public code (benghaem/dlrm_mlet, shell workflows).
_AUTHORS: dict[str, Any] = {
    "model": {"name": "dlrm", "dim": 16, "inner_dim": 64, "top_mlp": [512, 256]},
    "optimizer": {
        "tables": {"name": "sgd", "learning_rate": 0.2},
        "dense": {"name": "sgd", "learning_rate": 0.2},
    },
    "training": {"batch_size": 128, "epochs": 1, "patience": None},
}

PRESETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "paper": {
        "model": {"inner_dim": 64, "init": "paper"},
        "optimizer": _AUTHORS["optimizer"],
        "training": _AUTHORS["training"],
    },
    "criteo-kaggle": {
        **_AUTHORS,
        "model": {**_AUTHORS["model"], "bottom_mlp": [512, 256, 64]},
        "training": {**_AUTHORS["training"], "validate_every": 3_000},
    },
    "avazu": {
        **_AUTHORS,
        "model": {**_AUTHORS["model"], "bottom_mlp": [256, 64]},
        "training": {**_AUTHORS["training"], "validate_every": 30_000},
    },
}

#: The name of the recipe among presets, which is there unless another one is chosen.
RECIPE = "recipe"


def with_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the user gave, over those of a preset.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == RECIPE:
        return merge(recipe(given), given)
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are: {', '.join([RECIPE, *PRESETS])}")
    return merge(PRESETS[name], given)
