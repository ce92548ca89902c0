"""A study: which arms are trained on which data, and how each is tuned."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import Field as Setting
from pydantic import PositiveFloat, PositiveInt, field_validator, model_validator
from typing_extensions import Self

from mlet.models import AnyModelConfig, ModelConfig
from mlet.nn.compression import Precision
from mlet.settings import Settings
from mlet.studies.datasets import DatasetConfig
from mlet.studies.halving import Halving
from mlet.studies.methods import SLT, Method, mlet_methods
from mlet.task import Task
from mlet.training import RunConfig
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.presets import RECIPE_MODEL, recipe_optimizer

#: Names become folders of runs.
Name = Annotated[str, Setting(pattern=r"^[\w.+=-]+$")]


class HalvingConfig(Settings):
    """Successive halving of trials; see `mlet.studies.halving`.

    Attributes:
        factor: η; a trial goes on if it is among the best 1/η of the arm's trials that got as far.
        first: validations (by default four an epoch) until trials are first compared; then after
            η times as many, and so on.
    """

    factor: Annotated[int, Setting(ge=2)] = 3
    first: PositiveInt = 2


#: k of an MLET arm: a number, or chosen for each field (`mlet.nn.inner_dim`).
InnerDim: TypeAlias = PositiveInt | Literal["auto"]

Range: TypeAlias = tuple[PositiveFloat, PositiveFloat]

#: The settings that may be tuned beside the tables' step size.
RANGES = ("weight_decay", "damping", "init_scale", "dense_learning_rate")


class TuningConfig(Settings):
    """What every arm may try on the validation split, single-layer and peers like MLET.

    Attributes:
        trials: settings tried by each arm, all with the same seed. Two thirds are spread evenly
            over the ranges, the same for every arm; the rest are Optuna's (TPE), from what the arm
            has seen.
        span: step sizes reach from the optimizer's own divided by this to times this, in log scale.
        weight_decay, damping, init_scale, dense_learning_rate: ranges of these settings of the
            tables, and of the dense layers' step size, in log scale; null leaves a setting as it
            is, and the dense layers' step size in its ratio to the tables'.
        learning_rates: the step sizes tried, one a trial, in the place of trials, span and ranges.
        halving: give up trials that fall behind the arm's own earlier ones; null trains all to
            their end.
    """

    trials: PositiveInt = 6
    span: Annotated[float, Setting(gt=1)] = 8.0
    weight_decay: Range | None = None
    damping: Range | None = None
    init_scale: Range | None = None
    dense_learning_rate: Range | None = None
    learning_rates: list[PositiveFloat] | None = Setting(None, min_length=1)
    halving: HalvingConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_trial_for_each_rate(cls, values: Any) -> Any:
        rates = values.get("learning_rates") if isinstance(values, Mapping) else None
        if not isinstance(rates, Sequence):
            return values
        if len(set(rates)) < len(rates):
            raise ValueError("a learning rate is listed twice")
        chosen = [name for name in RANGES if values.get(name) is not None]
        if values.get("trials", len(rates)) != len(rates) or chosen:
            raise ValueError(f"learning_rates leave no {', '.join(chosen) or 'trials'} to choose")
        return {**values, "trials": len(rates)}

    @property
    def ranges(self) -> dict[str, Range]:
        """The settings that are tuned beside the step size, with their ranges."""
        return {name: range_ for name in RANGES if (range_ := getattr(self, name)) is not None}

    @field_validator(*RANGES)
    @classmethod
    def _rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError("a range's first number must be below its second")
        return value


#: The step sizes that comparisons try by default, as shares of the base's.
_TRIED = (0.25, 1.0, 4.0)

_Value = TypeVar("_Value", int, int | str)


def each_once(values: list[_Value]) -> list[_Value]:
    """Refuse a repeated dimension, whose arms would be the same ones.

    Raises:
        ValueError: there is one.
    """
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value} is listed twice")
    return values


def one_thread(training: Any) -> Any:
    """Settings of training with one thread, unless they say otherwise: runs share the cores."""
    return {"threads": 1, **training} if isinstance(training, Mapping) else training


def recipe_of_arms(models: Collection[ModelConfig]) -> dict[str, Any]:
    """What the recipe is of MLET arms, beside their k: without what the models were given.

    Raises:
        ValueError: some were given a part of it, and others not.
    """
    parts = {"compression", *RECIPE_MODEL} - {"inner_dim"}
    given = [parts & model.model_fields_set for model in models]
    for names in given:
        if names != given[0]:
            one = sorted(names ^ given[0])[0]
            raise ValueError(
                f"{one!r} is given to some models and not to others, so that the recipe is not the "
                f"same for all: say in mlet what MLET arms have"
            )
    compressed = any(model.compression is not None for model in models)
    left_out = {"inner_dim", *given[0], *(RECIPE_MODEL if compressed else ())}
    return {name: value for name, value in RECIPE_MODEL.items() if name not in left_out}


class ArmsConfig(Settings):
    """What comparisons of a single run's arms share.

    Attributes:
        base: the run that every arm varies; its dim, inner_dim and seed are replaced. One thread a
            run unless it says otherwise, since runs share the cores.
        dims: embedding dimensions d, for SLT and MLET alike.
        inner_dims: inner dimensions k of the MLET arms, numbers or ``auto``.
        mlet: model settings that the MLET arms put over the base's, beside ``inner_dim``; null is
            the recipe's, but for those that the base was given.
        seeds: runs of each arm, with seeds 0, 1, ….
        learning_rates: step sizes of the tables tried, the same list for every arm; that of the
            dense layers keeps its ratio to it. Each arm keeps the one that is best on validation,
            those that diverge with any seed left out. None tries a quarter of the base's, itself
            and four times it; an empty list trains every arm with the base's.
    """

    base: RunConfig
    dims: list[PositiveInt] = Setting(min_length=1)
    inner_dims: list[InnerDim] = Setting(min_length=1)
    mlet: dict[str, Any] | None = None
    seeds: PositiveInt = 3
    learning_rates: list[PositiveFloat] | None = None

    @property
    def tried_rates(self) -> list[float]:
        """The step sizes of the tables that every arm tries."""
        own = self.base.optimizer.tables.learning_rate
        if self.learning_rates is None:
            return [own * share for share in _TRIED]
        return self.learning_rates or [own]

    @field_validator("dims", "inner_dims")
    @classmethod
    def _once(cls, value: list[int | str]) -> list[int | str]:
        return each_once(value)

    @field_validator("base", mode="before")
    @classmethod
    def _one_thread(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {**value, "training": one_thread(value.get("training", {}))}
        return value

    @field_validator("base")
    @classmethod
    def _begins_on_its_own(cls, value: RunConfig) -> RunConfig:
        if value.start is not None or value.grow is not None:
            raise ValueError("start, grow: arms begin on their own, not with the weights of a run")
        if value.log:
            raise ValueError("log: is of single runs; what is compared is kept in its own files")
        return value

    @model_validator(mode="after")
    def _recipe_by_default(self) -> Self:
        if self.mlet is None:
            object.__setattr__(self, "mlet", recipe_of_arms([self.base.model]))
        return self


class StudyConfig(Settings):
    """The grid: data sets × models × optimizers × methods × dimensions × seeds.

    Attributes:
        datasets: by name; see `DatasetConfig`.
        models: settings by name, or a list of model names. Their ``dim`` and ``inner_dim`` are
            replaced.
        optimizers: settings by name, or a list of optimizer names with the recipe's settings.
        dims: embedding dimensions d.
        inner_dims: inner dimensions k of the MLET arms, numbers or ``auto``.
        mlet: model settings that the MLET arms put over the models' own, beside ``inner_dim``; null
            is the recipe's, but for those that a model was given; ``{}`` is none.
        peers: other methods by name: the model settings that make them; ``inner_dim: dim`` means
            k = d, ``precision`` is what their tables are served in, and ``cut: {dim: 64, epochs:
            1}`` makes them of a wider single-layer model (see `Cut`).
        seeds: final runs of each arm, with seeds 0, 1, ….
        tuning: the budget of every arm.
        training: of every run; its seed is replaced.
        resamples: of the test rows, for the intervals.
        rare_below: a test row is rare if its rarest category has fewer training rows than this.
    """

    datasets: dict[Name, DatasetConfig] = Setting(min_length=1)
    models: dict[Name, AnyModelConfig] = Setting(min_length=1)
    optimizers: dict[Name, OptimizersConfig] = Setting(min_length=1)
    dims: list[PositiveInt] = Setting(min_length=1)
    inner_dims: list[InnerDim] = Setting(default_factory=list)
    mlet: dict[str, Any] | None = None
    peers: dict[Name, dict[str, Any]] = Setting(default_factory=dict)
    seeds: PositiveInt = 3
    tuning: TuningConfig = TuningConfig()
    training: TrainingConfig = TrainingConfig(threads=1)
    resamples: PositiveInt = 200
    rare_below: PositiveInt = 10

    @field_validator("dims", "inner_dims")
    @classmethod
    def _once(cls, value: list[int | str]) -> list[int | str]:
        return each_once(value)

    @field_validator("models", mode="before")
    @classmethod
    def _named_models(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {name: {"name": name} for name in value}
        if isinstance(value, Mapping):
            return {
                key: {"name": key, **model} if isinstance(model, Mapping) else model
                for key, model in value.items()
            }
        return value

    @field_validator("optimizers", mode="before")
    @classmethod
    def _named_optimizers(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {
                name: recipe_optimizer(str(name)) or {"tables": {"name": name}} for name in value
            }
        return value

    @field_validator("training", mode="before")
    @classmethod
    def _one_thread(cls, value: Any) -> Any:
        return one_thread(value)

    @model_validator(mode="after")
    def _recipe_by_default(self) -> Self:
        if self.mlet is None:
            object.__setattr__(self, "mlet", recipe_of_arms(self.models.values()))
        return self

    @model_validator(mode="after")
    def _peers_are_models(self) -> Self:
        for method in self.methods():
            for model in self.models.values():
                for dim in (min(self.dims), max(self.dims)):
                    method.model(model, dim)
        reserved = {method.name for method in self.methods() if method.kind != "peer"}
        for name, changes in self.peers.items():
            if name in reserved:
                raise ValueError(f"peers: {name!r} is the name of a method of the study itself")
            if "dim" in changes:
                raise ValueError(f"peers.{name}: 'dim' is the study's to set")
        return self

    @model_validator(mode="after")
    def _damping_has_a_place(self) -> Self:
        without = [name for name, found in self.optimizers.items() if found.tables.name == "sgd"]
        if self.tuning.damping is not None and without:
            raise ValueError(f"tuning.damping: optimizer {without[0]!r} is SGD, which has none")
        return self

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        tasks = {model.task for model in self.models.values()}
        if len(tasks) > 1:
            raise ValueError(f"models: of one task, not of {', '.join(sorted(tasks))}")
        if any("task" in changes for changes in self.peers.values()):
            raise ValueError("peers: 'task' is the models' to set")
        return self

    @property
    def task(self) -> Task:
        """What all its models are for."""
        return next(iter(self.models.values())).build_task()

    def methods(self) -> list[Method]:
        """Single-layer training, MLET with each k, then the peers."""
        mlet = mlet_methods(self.inner_dims, self.mlet or {})
        peers = [Method.peer(name, settings) for name, settings in self.peers.items()]
        return [SLT, *mlet, *peers]

    def arms(self) -> list[Arm]:
        """All arms, those to be compared with one another end to end."""
        return [
            Arm(dataset, model, optimizer, dim, method)
            for dataset in self.datasets
            for model in self.models
            for optimizer in self.optimizers
            for dim in self.dims
            for method in self.methods()
        ]

    def trained(self, arm: Arm) -> Arm:
        """The arm whose runs an arm uses: itself, or one that is only served otherwise."""
        same = (method for method in self.methods() if method.trains_as(arm.method))
        return replace(arm, method=next(same))

    def precisions(self, arm: Arm) -> list[Precision]:
        """What an arm's runs are served in, by itself and others."""
        methods = (method for method in self.methods() if method.trains_as(arm.method))
        return list(dict.fromkeys(method.precision for method in methods))

    def rates(self, arm: Arm) -> tuple[float, float]:
        """The smallest and the largest step size that an arm may try."""
        if self.tuning.learning_rates is not None:
            return min(self.tuning.learning_rates), max(self.tuning.learning_rates)
        base = self.optimizers[arm.optimizer].tables.learning_rate
        return base / self.tuning.span, base * self.tuning.span

    def halving(self, before: Sequence[Sequence[float]]) -> Halving | None:
        """The rule that may give up a trial, by what the arm's earlier ones had at validations."""
        config = self.tuning.halving
        return None if config is None else Halving(config.factor, config.first, before)

    def run(self, arm: Arm, setting: Mapping[str, float], seed: int, data: Path) -> RunConfig:
        """A training run; ``setting`` has the ``learning_rate`` and what else is tuned."""
        model = arm.method.model(self.models[arm.model], arm.dim)
        optimizer = dict(setting)
        if "init_scale" in setting:
            model = model.model_copy(update={"init_scale": optimizer.pop("init_scale")})
        training = {"seed": seed}
        if arm.method.cut is not None:
            training["epochs"] = arm.method.cut.epochs
        return RunConfig(
            data=data,
            model=model,
            optimizer=self.optimizers[arm.optimizer].at(**optimizer),
            training=self.training.model_copy(update=training),
        )

    def wide_run(
        self, arm: Arm, setting: Mapping[str, float], seed: int, data: Path
    ) -> RunConfig | None:
        """The single-layer run that an arm's run is cut from; None if it begins on its own."""
        if arm.method.cut is None:
            return None
        return self.run(replace(arm, method=SLT, dim=arm.method.cut.dim), setting, seed, data)


@dataclass(frozen=True)
class Arm:
    """One configuration, up to what is tuned."""

    dataset: str
    model: str
    optimizer: str
    dim: int
    method: Method

    @property
    def panel(self) -> tuple[str, str, str]:
        """What it shares with the arms it is compared with."""
        return self.dataset, self.model, self.optimizer

    @property
    def name(self) -> str:
        """Unique in a study; also its folder of runs."""
        return f"{'/'.join(self.panel)}/{self.method.name}-d{self.dim}"


def panels(arms: list[Arm]) -> Iterator[tuple[tuple[str, str, str], list[Arm]]]:
    """Arms by what they are compared within, in the order of the study."""
    for panel in dict.fromkeys(arm.panel for arm in arms):
        yield panel, [arm for arm in arms if arm.panel == panel]
