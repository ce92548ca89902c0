"""Options that several commands share, and how they become settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from mlet.errors import ConfigError
from mlet.models import MODELS
from mlet.settings import load_yaml, merge, parse_assignments
from mlet.training import RunConfig
from mlet.training.config import OptimizerName
from mlet.training.presets import PRESETS, RECIPE, recipe, recipe_optimizer, with_preset

#: What a run has that the user says nothing of: what ``--help`` shows.
_UNSAID = RunConfig.parse({"data": "DATA", **with_preset(RECIPE, {})}, RECIPE)


def _step_sizes(name: str) -> str:
    made = recipe_optimizer(name)
    tables, dense = made["tables"]["learning_rate"], made["dense"]["learning_rate"]
    return f"{tables:g}" if tables == dense else f"{tables:g} and {dense:g}"


Model: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", help=f"One of: {', '.join(MODELS)}.", show_default=_UNSAID.model.name),
]
Dim: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--dim", help="Embedding dimension d.", min=1, show_default=str(_UNSAID.model.dim)
    ),
]
Optimizer: TypeAlias = Annotated[
    Literal["sgd", "adagrad", "rowwise_adagrad", "adam"] | None,
    typer.Option(
        "--optimizer",
        help="For tables and dense layers; separately: --set optimizer.tables.name=…",
        show_default=_UNSAID.optimizer.tables.name,
    ),
]
Rate: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        "--lr",
        help="For tables and dense layers.",
        show_default="; ".join(
            f"{name} {_step_sizes(name)}" for name in ("adagrad", "adam", "sgd")
        ),
    ),
]
Epochs: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        help="Passes over the data, at most.",
        min=1,
        show_default=str(_UNSAID.training.epochs),
    ),
]
BatchSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        help="Rows of a step.",
        min=1,
        show_default=str(_UNSAID.training.batch_size),
    ),
]
RunData: TypeAlias = Annotated[
    Path | None, typer.Option("--data", help="Prepared data set; default: the run's own.")
]
Preset: TypeAlias = Annotated[
    str,
    typer.Option(
        "--preset",
        help="Settings to start from. recipe: what we found best for rare categories; plain: none "
        f"of it; with the authors' settings: {', '.join(list(PRESETS)[1:])}.",
    ),
]
Assignments: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting, as training.patience=5. Repeatable.")
]


def parse_integers(text: str, option: str) -> list[int]:
    """``"1,10,100"`` as numbers.

    Raises:
        ConfigError: a part is no integer.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: expected integers with commas, as 2,4,8") from None


def parse_inner_dims(text: str) -> list[int | str]:
    """``"64,auto"`` as inner dimensions.

    Raises:
        ConfigError: a part is neither an integer nor auto.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        return [part if part == "auto" else int(part) for part in parts]
    except ValueError:
        raise ConfigError(
            f"--inner-dims {text!r}: expected integers with commas, as 16,64, or auto"
        ) from None


def parse_inner_dim(text: str | None) -> int | str | None:
    """An inner dimension as an option gives it; None for 0, ordinary tables.

    Raises:
        ConfigError: it is neither an integer from 0 on nor auto.
    """
    if text is None or text == "auto":
        return text
    if not text.isascii() or not text.isdigit():
        raise ConfigError(
            f"--inner-dim {text!r}: expected an integer, 0 for ordinary tables, or auto"
        )
    return int(text) or None


def parse_rates(text: str) -> list[float]:
    """Step sizes with commas between them.

    Raises:
        ConfigError: they are no numbers.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--learning-rates {text!r}: expected numbers with commas") from None


#: Bytes of a unit.
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(text: str, option: str) -> int:
    """``512M`` or ``8MiB`` as a number of bytes; units K, M and G are powers of 1024.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{option} {text!r}: expected a size, as 512M or 2G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def overrides(
    *,
    model: str | None,
    optimizer: OptimizerName | None,
    learning_rate: float | None,
    epochs: int | None,
    batch_size: int | None,
    assignments: Sequence[str] | None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The settings that the user gave as options, ``--set`` last; options not given are absent."""
    values: dict[str, Any] = {
        "model": {"name": model},
        "training": {"epochs": epochs, "batch_size": batch_size},
    }
    values = _without_none(merge(values, extra or {}))
    chosen = {
        part: _without_none({"name": name, "learning_rate": learning_rate})
        for part, name in _parts_of(optimizer).items()
    }
    if any(chosen.values()):
        values["optimizer"] = chosen
    return merge(values, parse_assignments(assignments or []))


def _parts_of(optimizer: OptimizerName | None) -> dict[str, str | None]:
    """The methods of tables and dense layers where one option names both."""
    dense = "adagrad" if optimizer == "rowwise_adagrad" else optimizer
    return {"tables": optimizer, "dense": dense}


def from_file(config: Path | None, optimizer: OptimizerName | None) -> dict[str, Any]:
    """The settings of a file; of its optimizers only those of the method that an option names:
    another method's step size and decay say nothing of this one's."""
    values = load_yaml(config) if config else {}
    given = values.get("optimizer")
    if optimizer is not None and isinstance(given, Mapping):
        names = _parts_of(optimizer)
        values["optimizer"] = {
            part: settings
            for part, settings in given.items()
            if part not in names
            or not isinstance(settings, Mapping)
            or settings.get("name", "adagrad") == names[part]
        }
    return values


def arms_from(
    preset: str, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the arms of a comparison share, and what its MLET arms have beside; None where that is
    left to the comparison.

    Raises:
        ConfigError: there is no preset of that name.
    """
    if preset != RECIPE:
        return with_preset(preset, given), {}
    return merge({"optimizer": recipe(given)["optimizer"]}, given), None


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
