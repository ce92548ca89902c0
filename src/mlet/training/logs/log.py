"""What a log is, and how settings are told to one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from mlet.training.config import RunConfig

#: How training ended: all of it is done, it diverged or came to an error, or was interrupted.
Status = Literal["finished", "failed", "interrupted"]
Parameter = bool | int | float | str


class Log(Protocol):
    """Where a run's numbers go, by the library whose log it is."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Metrics by name, after ``step`` steps."""

    def close(self, status: Status) -> None:
        """Nothing follows, unless the run is resumed."""


#: Settings that go by names of the data's.
_BY_FIELD = ("inner_dims", "field_dims")


def hyperparameters(config: RunConfig) -> dict[str, Parameter]:
    """All settings of a run by their names, as ``training.seed``; lists and the like as JSON."""
    return dict(_flat(config.model_dump(mode="json", exclude={"log"})))


def _flat(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, Parameter]]:
    found: list[tuple[str, Parameter]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value and name not in _BY_FIELD:
            found += _flat(value, f"{above}{name}.")
        else:
            known = isinstance(value, (bool, int, float, str))
            found.append((f"{above}{name}", value if known else json.dumps(value)))
    return found
