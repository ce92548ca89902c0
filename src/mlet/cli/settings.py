"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from mlet.errors import ConfigError
from mlet.settings import merge, parse_assignments
from mlet.training.config import OptimizerName, OptimizersConfig

Optimizer: TypeAlias = Annotated[
    Literal["sgd", "adagrad", "rowwise_adagrad", "adam"] | None,
    typer.Option(help="For tables and dense layers; separately: --set optimizer.tables.name=…"),
]
Rate: TypeAlias = Annotated[
    float | None, typer.Option("--learning-rate", "--lr", help="For tables and dense layers.")
]
RunData: TypeAlias = Annotated[
    Path | None, typer.Option("--data", help="Prepared data set; default: the run's own.")
]
Assignments: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting, as training.patience=5. Repeatable.")
]


def parse_rates(text: str) -> list[float]:
    """Step sizes with commas between them.

    Raises:
        ConfigError: they are no numbers.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--learning-rates {text!r}: expected numbers with commas") from None


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
    if optimizer is not None:
        chosen = OptimizersConfig.same(optimizer, learning_rate)
        values["optimizer"] = chosen.model_dump(include={"tables": True, "dense": True})
    elif learning_rate is not None:
        values["optimizer"] = {
            "tables": {"learning_rate": learning_rate},
            "dense": {"learning_rate": learning_rate},
        }
    return merge(values, parse_assignments(assignments or []))


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
