"""A run on disk: configuration, metrics, checkpoints, the collapsed model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError
from pydantic import Field as Setting

from mlet.atomic import atomic_path, write_text
from mlet.data import DatasetSchema, PreparedDataset
from mlet.data.identity import check_data, check_model, fingerprint, fingerprint_of_0_1
from mlet.errors import RunError
from mlet.nn.compression import Precision
from mlet.reading import (
    checksum,
    load_torch,
    read_sealed,
    read_sealed_lines,
    reading,
    write_sealed,
    write_sealed_lines,
)
from mlet.settings import first_difference, load_yaml
from mlet.training.config import RunConfig

_Kept = TypeVar("_Kept", bound="Progress | Summary")

_REMEDY = "train the run again"

#: Settings of training that a run may be continued with other values of.
_FREE = (
    "epochs",
    "patience",
    "checkpoint_every",
    "record_spectra",
    "threads",
    "device",
    "keep_state",
    "tables_in",
    "shard_tables_above",
)
_ELSEWHERE = {"data", "log"}  # of which its weights are not


@dataclass
class Progress:
    """Where training stands: all that changes beside tensors.

    Attributes:
        step: optimizer steps made; with the loader's length it gives the next batch.
        loss_sum, loss_steps: training loss since the last validation.
        best_step, best: the best validation so far, and its headline metric, more being better.
        stale: validations since then.
        seconds: spent in training steps, validation and checkpoints left out.
        records: one for each validation, the lines of ``metrics.jsonl``.
        spectra: the lines of ``spectra.jsonl``.
        done: why training is over; None while it is not.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: NonNegativeInt = 0
    loss_sum: float = 0.0
    loss_steps: NonNegativeInt = 0
    best_step: NonNegativeInt = 0
    best: float = float("-inf")
    stale: NonNegativeInt = 0
    seconds: float = 0.0
    records: list[dict[str, int | float]] = field(default_factory=list)
    spectra: list[dict[str, Any]] = field(default_factory=list)
    done: str | None = None


@dataclass(frozen=True)
class Summary:
    """What a finished run left behind (``summary.json``).

    Attributes:
        steps, epochs: of training.
        stopped: ``early`` (nothing better within the patience) or ``epochs`` (all were done).
        best_step: the step whose weights were kept.
        valid: scores of those weights on the validation split.
        seconds: spent in training steps.
        rows_per_second: throughput of training.
        training_bytes, model_bytes: size of all parameters while training and once collapsed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    steps: Annotated[int, Setting(ge=1)]
    epochs: Annotated[int, Setting(ge=1)]
    stopped: str
    best_step: int
    valid: dict[str, float]
    seconds: float
    rows_per_second: float
    training_bytes: int
    model_bytes: int


class RunDirectory:
    """The files of a run, each written whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.config_file = self.root / "config.yaml"
        self.schema_file = self.root / "schema.json"
        self._begun_file = self.root / "begun.json"
        self.metrics_file = self.root / "metrics.jsonl"
        self.spectra_file = self.root / "spectra.jsonl"
        self.summary_file = self.root / "summary.json"
        self.model_file = self.root / "model.safetensors"
        self.grown_file = self.root / "grown.json"
        self._failure_file = self.root / "failure.txt"
        self._last = self.root / "checkpoints" / "last.pt"
        self._best = self.root / "checkpoints" / "best.pt"

    def create(self, config: RunConfig) -> None:
        """Start a new run.

        Raises:
            RunError: there is something in the way.
        """
        if self.config_file.exists():
            state = "finished" if self.finished else "unfinished"
            remedy = "" if self.finished else f" continue it with --resume {self.root} or"
            raise RunError(f"{self.root} holds a {state} run;{remedy} choose another directory")
        # A process that was killed while it began leaves a configuration without its name.
        begun = f".{self.config_file.name}."
        if self.root.exists() and (
            not self.root.is_dir()
            or any(not path.name.startswith(begun) for path in self.root.iterdir())
        ):
            raise RunError(f"{self.root} exists and is no run; choose another directory")
        self.write_config(config)

    def write_schema(self, schema: DatasetSchema) -> None:
        """Keep what the run's weights are weights of."""
        write_sealed(self.schema_file, schema.model_dump(mode="json"))

    def write_begun(self, config: RunConfig) -> None:
        """Keep the settings that the run's weights come from, whatever is edited afterwards."""
        write_sealed(self._begun_file, config.model_dump(mode="json", exclude=_ELSEWHERE))

    @property
    def is_begun(self) -> bool:
        """Whether those settings are kept."""
        return self._begun_file.exists()

    def check_begun(self, config: RunConfig, *, all_of_it: bool = False) -> None:
        """Refuse a configuration that was edited since the run was begun, or since it was finished.

        Args:
            config: as it is now.
            all_of_it: also what an unfinished run may be continued with other values of.

        Raises:
            RunError: it was; names the setting and both values.
        """
        if not self.is_begun:  # by mlet 0.1, or not yet
            return
        kept = read_sealed(self._begun_file, RunError, _REMEDY)
        # Settings that a later version has beside those that were kept are as by default.
        then = RunConfig.parse({**kept, "data": str(config.data)}, str(self._begun_file))
        trees = [one.model_dump(mode="json", exclude=_ELSEWHERE) for one in (then, config)]
        if not all_of_it:
            for tree in trees:
                for name in _FREE:
                    del tree["training"][name]
        place = first_difference(trees[0], trees[1])
        if place is not None:
            remedy = (
                "the run is finished, and stays as it is"
                if all_of_it
                else f"of training, {', '.join(_FREE)} may change while it is unfinished"
            )
            raise RunError(
                f"{self.config_file}: {place} has changed since the run was begun; put it back, or "
                f"train with it in another directory ({remedy})"
            )

    def check_data(self, data: PreparedDataset, *, same_rows: bool) -> None:
        """Refuse a data set that the run's weights do not belong to; see `mlet.data.identity`.

        Raises:
            RunError: it is another one.
        """
        if self.schema_file.exists():
            check_data(self.schema(), data, self.root, same_rows=same_rows)
            return
        # A run of mlet 0.1, or one without weights. 0.1 kept no more than this of its data set.
        known = self.load_last()
        if known is not None and known.get("data") != fingerprint_of_0_1(data.schema):
            raise RunError(
                f"{data.root} is not the data set of {self.root}: it was prepared in another way, "
                f"or from other data; name the one the run was trained on, or train again"
            )

    def check_model(self, schema: DatasetSchema) -> None:
        """Refuse a model file with this schema that is of another run, trained on other data.

        Raises:
            RunError: it is.
        """
        if self.schema_file.exists():
            check_model(self.schema(), schema, self.root, self.model_file)

    def schema(self) -> DatasetSchema:
        """Of the data set its weights belong to, kept when training begins."""
        values = read_sealed(self.schema_file, RunError, _REMEDY)
        return DatasetSchema.parse(values, str(self.schema_file))

    @property
    def finished(self) -> bool:
        """Whether training has come to its end."""
        return self.summary_file.exists()

    @property
    def failure(self) -> str | None:
        """Why training cannot go on, if it diverged."""
        if not self._failure_file.exists():
            return None
        with reading(self._failure_file, RunError, _REMEDY):
            return self._failure_file.read_text(encoding="utf-8")

    def write_failure(self, reason: str) -> None:
        """Mark the run as diverged: resuming it would only diverge again."""
        write_text(self._failure_file, reason)

    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            RunError: the directory is no run.
        """
        values = self._config_values()
        # mlet 0.1 took the precision for a setting of the model.
        if isinstance(values.get("model"), dict):
            values["model"].pop("quantize", None)
        config = RunConfig.parse(values, str(self.config_file))
        self.check_begun(config)
        return config

    def _config_values(self) -> dict[str, Any]:
        if not self.config_file.exists():
            raise RunError(f"{self.root}: not a run (no config.yaml)")
        return load_yaml(self.config_file)

    def precision(self) -> Precision:
        """What the run's model is served in unless another precision is asked for.

        float32, but for runs of mlet 0.1 that say ``model.quantize``.
        """
        model = self._config_values().get("model")
        chosen = model.get("quantize") if isinstance(model, dict) else None
        return "float32" if chosen is None else chosen

    def summary(self) -> Summary:
        """The summary of a finished run.

        Raises:
            RunError: it is not finished.
        """
        self.config()
        if not self.finished:
            raise RunError(
                f"{self.root}: the run is unfinished; continue it with mlet train --resume "
                f"{self.root}"
            )
        values = read_sealed(self.summary_file, RunError, _REMEDY)
        return _kept(Summary, values, self.summary_file)

    def seal(self) -> int:
        """What tells a finished run from others: the settings that are kept, and the summary."""
        files = [file for file in (self._begun_file, self.summary_file) if file.exists()]
        return checksum({file.name: read_sealed(file, RunError, _REMEDY) for file in files})

    def write_summary(self, summary: Summary) -> None:
        """Mark the run as finished."""
        write_sealed(self.summary_file, asdict(summary))

    def write_config(self, config: RunConfig) -> None:
        """Keep the run's settings."""
        write_text(self.config_file, config.to_yaml())

    @property
    def has_state(self) -> bool:
        """Whether there is something to go on from."""
        return self._last.exists()

    def drop_state(self) -> None:
        """Remove it."""
        self._last.unlink(missing_ok=True)

    def write_metrics(self, records: list[dict[str, int | float]]) -> None:
        """Write all validation records so far, one JSON object a line."""
        write_text(self.metrics_file, "".join(json.dumps(record) + "\n" for record in records))

    def metrics(self) -> list[dict[str, float]]:
        """All validation records so far.

        Raises:
            RunError: the file is missing or damaged.
        """
        with reading(self.metrics_file, RunError, _REMEDY):
            lines = self.metrics_file.read_text(encoding="utf-8").splitlines()
            return [dict(json.loads(line)) for line in lines]

    def write_spectra(self, records: list[dict[str, Any]]) -> None:
        """Write all records of the tables' spectra so far, one JSON object a line."""
        write_sealed_lines(self.spectra_file, records)

    def spectra(self) -> list[dict[str, Any]]:
        """The records of the tables' spectra; none unless ``training.record_spectra`` was set."""
        recorded = self.finished and self.config().training.record_spectra
        if not recorded and not self.spectra_file.exists():
            return []
        return read_sealed_lines(self.spectra_file, RunError, "remove it, or train the run again")

    def save_last(self, state: dict[str, Any]) -> None:
        """Keep the state to resume from."""
        self._save(state, self._last)

    def save_best(self, state: dict[str, Any]) -> None:
        """Keep the weights of the best validation."""
        self._save(state, self._best)

    def load_last(self, *, mapped: bool = False) -> dict[str, Any] | None:
        """The state to resume from; None if training was stopped before the first one.

        Args:
            mapped: leave its tensors in the file, to be read and not written to.

        Raises:
            RunError: it is damaged.
        """
        return self._load(self._last, mapped) if self._last.exists() else None

    def progress(self, state: Mapping[str, Any]) -> Progress:
        """Where training stood; mlet 0.1 called the best headline metric ``best_auc``."""
        values = state.get("progress")
        if isinstance(values, Mapping) and "best_auc" in values:
            values = {**values, "best": values["best_auc"]}
            del values["best_auc"]
        return _kept(Progress, values, self._last)

    def load_best(self, *, mapped: bool = False) -> dict[str, Any]:
        """The weights of the best validation. Arguments and errors as of `load_last`."""
        return self._load(self._best, mapped)

    def _save(self, state: dict[str, Any], path: Path) -> None:
        # torch reports a failed write as a RuntimeError
        with atomic_path(path, failures=(RuntimeError,)) as temporary:
            torch.save({**state, "data": fingerprint(self.schema())}, temporary)

    def _load(self, path: Path, mapped: bool) -> dict[str, Any]:
        with reading(path, RunError, _REMEDY, missing="missing; the run has no validation yet"):
            state = load_torch(path, mapped=mapped)
        if not isinstance(state, dict):
            raise RunError(f"{path}: damaged checkpoint; {_REMEDY}")
        if self.schema_file.exists():
            schema = self.schema()
            # The last two: a run of mlet 0.1 that is being continued, whose best.pt had none.
            known = (fingerprint(schema), fingerprint_of_0_1(schema), None)
            if state.get("data") not in known:
                raise RunError(
                    f"{path}: a checkpoint of another run, trained on other data than "
                    f"{self.schema_file} says; train the run again"
                )
        return state


def _kept(kind: type[_Kept], values: Any, place: Path) -> _Kept:
    """What a file keeps, as its class.

    Raises:
        RunError: it is of another version of mlet, or damaged.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"])) or kind.__name__.lower()
        raise RunError(
            f"{place}: damaged, or of another version of mlet than {version('mlet')} "
            f"({name}: {problem['msg'].lower()}); use that version, or {_REMEDY}"
        ) from None
