"""Which logs a run has, where they are, and whether there is what writes them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mlet.errors import ConfigError, RunError
from mlet.training.config import RunConfig

#: What each log is written with, which the extra of its name installs.
_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow",)}
_SQLITE = "sqlite:///"


def places(config: RunConfig) -> dict[str, str | None]:
    """The logs of a run, and where each is to be; None for its own place."""
    split = (entry.partition("=") for entry in config.log)
    return {name: place or None for name, _, place in split}


def check_logs(config: RunConfig) -> None:
    """Refuse logs that nothing can write.

    Raises:
        ConfigError: an extra is not installed.
    """
    for name in places(config):
        missing = [package for package in _PACKAGES[name] if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f'log {name!r} needs {", ".join(missing)}: pip install "mlet[{name}]"'
            )


def with_log_places(config: RunConfig) -> RunConfig:
    """The settings with places that do not depend on the folder in which a run is resumed.

    Raises:
        ConfigError: as `check_logs`.
        RunError: in the folder for TensorBoard there is the log of another run.
    """
    check_logs(config)
    log = []
    for name, place in places(config).items():
        if place is not None and name == "tensorboard":
            if holds_events(Path(place)):
                raise RunError(
                    f"{place}: holds the log of another run; name a folder of its own, as "
                    f"tensorboard={Path(place) / 'run2'}"
                )
            place = str(Path(place).resolve())
        elif place is not None and place.startswith(_SQLITE):
            place = _SQLITE + str(Path(place.removeprefix(_SQLITE)).resolve())
        log.append(name if place is None else f"{name}={place}")
    return config.model_copy(update={"log": log})


def holds_events(folder: Path) -> bool:
    """Whether TensorBoard finds something in a folder itself."""
    return any(folder.glob("*tfevents*"))
