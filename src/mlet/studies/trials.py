"""What a trial of the database is: tuning or final, running or done, and as it was written."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from mlet.liveness import is_alive
from mlet.reading import checksum

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: The attribute under which a trial keeps the checksum of its claim, and that of its outcome.
SEALS = "seal", "outcome_seal"


def is_final(trial: FrozenTrial, seed: int | None = None) -> bool:
    """Whether a trial is a final run, and of that seed if one is given."""
    final = bool(trial.user_attrs.get("final"))
    return final and (seed is None or trial.user_attrs["seed"] == seed)


def is_as_written(trial: FrozenTrial) -> bool:
    """Whether a trial is what was claimed, and what came of it what was found."""
    known = trial.user_attrs
    claim = {name: known.get(name) for name in ("owner", "owner_started", "seed", "final")}
    seal = known.get(SEALS[0])
    if seal != checksum({**claim, "params": trial.params}):
        return False
    if is_running(trial):
        return True
    outcomes: list[dict[str, Any]]
    if trial.state.name == "FAIL":
        outcomes = [{name: known[name]} for name in ("reason", "void") if name in known]
    else:
        # Optuna takes the last of these for the value of a pruned trial.
        found: dict[str, Any] = {"value": trial.value} if trial.state.name == "COMPLETE" else {}
        if validations := validations_of(trial):
            found["validations"] = validations
        if "points" in known:
            found["points"] = known["points"]
        outcomes = [found]
    return any(known.get(SEALS[1]) == checksum(outcome, seal) for outcome in outcomes)


def validations_of(trial: FrozenTrial) -> list[float]:
    """The quality at every validation of a trial that is done, where trials are halved."""
    return [trial.intermediate_values[place] for place in sorted(trial.intermediate_values)]


def is_running(trial: FrozenTrial) -> bool:
    """Whether a trial is claimed and not finished."""
    return trial.state.name == "RUNNING"


def owner_is_dead(trial: FrozenTrial) -> bool:
    """Whether a process of this machine claimed a trial and runs no more."""
    host, process, _ = trial.user_attrs["owner"].split(":")
    return host == socket.gethostname() and not is_alive(
        int(process), trial.user_attrs["owner_started"]
    )
