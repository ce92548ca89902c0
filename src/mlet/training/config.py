"""The configuration of a training run: one tree, the same in Python, YAML and ``--set``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field as Setting
from pydantic import (
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from mlet.models import AnyModelConfig, DLRMConfig
from mlet.settings import Settings

OptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]

#: Step sizes used unless the user gives one.
DEFAULT_LEARNING_RATES: dict[OptimizerName, float] = {
    "sgd": 0.1,
    "adagrad": 0.02,
    "rowwise_adagrad": 0.02,
    "adam": 0.001,
}

LearningRate = Annotated[float, Setting(gt=0)]


class _StepSize(Settings):
    """An optimizer's step size, by default that of its name."""

    learning_rate: LearningRate

    @model_validator(mode="before")
    @classmethod
    def _default_learning_rate(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("learning_rate") is None:
            name = values.get("name", cls.model_fields["name"].default)
            return {**values, "learning_rate": DEFAULT_LEARNING_RATES.get(name, 0.01)}
        return values


class TableOptimizerConfig(_StepSize):
    """Optimizer of the embedding tables; touches only the rows a batch queries.

    The projections of two-layer tables have dense gradients and take the same method (row-wise
    Adagrad: Adagrad), since the product's update is that of both factors.

    Attributes:
        name: the method.
        projection_lr: step size of the projections, in units of ``learning_rate``; of table biases
            too, unless the dense layers have the same method: biases then have their step size,
            since every row of a batch moves them as it moves those.
        matched_steps: multiply the step size and damping of a two-layer table by what makes its
            first step as long as that of an ordinary table (`mlet.optim.matched_steps`).
        damping: makes the first steps of a row as small as its gradients, where Adagrad and Adam
            would make them as large as all others: what a rare row has learnt from a few examples
            then weighs little (``docs/training.md``). It is the ε of rows, beside the root of their
            squared gradients, in units of one example's gradient, ``ε = 1e-8 + damping /
            batch_size``, so that it means the same at every batch size. 0 is none. Not of SGD.
        weight_decay: of the rows a batch queries, when it queries them; of projections, at every
            step.
    """

    name: OptimizerName = "adagrad"
    projection_lr: float = Setting(1.0, gt=0)
    matched_steps: bool = False
    damping: float = Setting(0.0, ge=0)
    weight_decay: float = Setting(0.0, ge=0)

    @model_validator(mode="after")
    def _damping_has_a_place(self) -> Self:
        if self.damping and self.name == "sgd":
            raise ValueError("damping is of adagrad, rowwise_adagrad and adam; sgd has none")
        return self


class DenseOptimizerConfig(_StepSize):
    """Optimizer of everything that is no embedding table."""

    name: Literal["sgd", "adagrad", "adam"] = "adagrad"
    weight_decay: float = Setting(0.0, ge=0)


class OptimizersConfig(Settings):
    """Separate settings for the tables and for the dense layers."""

    tables: TableOptimizerConfig = Setting(
        default_factory=lambda: TableOptimizerConfig.parse({}, "default")
    )
    dense: DenseOptimizerConfig = Setting(
        default_factory=lambda: DenseOptimizerConfig.parse({}, "default")
    )

    @classmethod
    def same(cls, name: OptimizerName, learning_rate: float | None = None) -> OptimizersConfig:
        """One method and step size for both (row-wise Adagrad: Adagrad for dense layers)."""
        dense = "adagrad" if name == "rowwise_adagrad" else name
        return cls.parse(
            {
                "tables": {"name": name, "learning_rate": learning_rate},
                "dense": {"name": dense, "learning_rate": learning_rate},
            },
            "optimizer",
        )

    def at(
        self,
        learning_rate: float,
        *,
        dense_learning_rate: float | None = None,
        **tables: float,
    ) -> OptimizersConfig:
        """With another step size of the tables.

        Args:
            learning_rate: of the tables.
            dense_learning_rate: of the dense layers; None keeps its ratio to the tables'.
            tables: other settings of the tables.
        """
        dense = dense_learning_rate
        if dense is None:
            dense = learning_rate * self.dense.learning_rate / self.tables.learning_rate
        return OptimizersConfig(
            tables=self.tables.model_copy(update={"learning_rate": learning_rate, **tables}),
            dense=self.dense.model_copy(update={"learning_rate": dense}),
        )


class TrainingConfig(Settings):
    """How long, how, and on what to train.

    Attributes:
        batch_size: rows of a step.
        epochs: passes over the training split, at most.
        validate_every: steps between validations; null validates four times an epoch.
        patience: stop after this many validations without a better headline metric (AUC); null
            trains all epochs.
        checkpoint_every: steps between checkpoints beside those at validations; null for none.
        record_spectra: record the tables' spectra at validations, for ``mlet inspect``; takes at
            most 2 % of the training time, but for the first and the last record.
        seed: of the initialisation and the shuffle.
        threads: CPU threads; null leaves torch's choice. Part of what makes runs repeatable to
            the bit.
        device: a torch device, as ``cpu`` or ``cuda``.
        keep_state: when a run has come to its end, keep the state that training could go on from
            (``--resume RUN --epochs N``): as large as all parameters and their optimizers' states.
        tables_in: ``memory``, or ``file``: tables and the optimizer's states of them are mapped
            from a file on the disk of the run, of which memory holds what it has room for.
        shard_tables_above: where several processes train, each has some of the rows alone of every
            table that takes more bytes than this in training, and what the optimizer keeps of
            those; smaller tables are whole in all. null keeps all tables whole. ``auto`` is 64 MiB,
            or null where something else that was asked for needs whole tables.
    """

    batch_size: int = Setting(512, ge=1)
    epochs: int = Setting(5, ge=1)
    validate_every: int | None = Setting(None, ge=1)
    patience: int | None = Setting(4, ge=1)
    checkpoint_every: int | None = Setting(None, ge=1)
    record_spectra: bool = False
    seed: int = Setting(0, ge=0)
    threads: int | None = Setting(None, ge=1)
    device: str = "cpu"
    keep_state: bool = False
    tables_in: Literal["memory", "file"] = "memory"
    shard_tables_above: Annotated[int, Setting(ge=0)] | Literal["auto"] | None = "auto"


class GrowConfig(Settings):
    """A model that was trained before, to go on with on data that extends its own.

    Attributes:
        run: a finished run, or a collapsed model file. Of a run the tables go on as they were
            trained, in two layers too; those of a file begin anew in the layers that the settings
            say, with the same product.
        noise: rows of new categories begin as that of the unknown one, and so many times what an
            untrained table holds.
        states: go on with what the run's optimizers kept of every parameter, if it kept that
            (``training.keep_state``); false begins with none.
    """

    run: Path
    noise: float = Setting(1.0, ge=0)
    states: bool = True


#: Programs whose logs a run can be written to.
LogName = Literal["tensorboard", "mlflow"]


class RunConfig(Settings):
    """Everything that determines a run.

    Attributes:
        data: a prepared data set.
        model, optimizer, training: see there.
        start: a finished run, or its model file, whose weights training begins with: of a model
            that differs in how its tables are kept alone. Two-layer tables hold them exactly,
            low-rank ones cut to their rank by truncated singular value decomposition.
        grow: what the model goes on from, if it was trained before on data that this extends.
        log: where metrics go beside the run's own files: ``tensorboard``, to the run's directory,
            ``mlflow``, to where MLflow's own settings say, or both, each with another place behind
            ``=``: a folder, a tracking URI.
    """

    data: Path
    model: AnyModelConfig = Setting(default_factory=DLRMConfig)
    optimizer: OptimizersConfig = Setting(default_factory=OptimizersConfig)
    training: TrainingConfig = Setting(default_factory=TrainingConfig)
    start: Path | None = None
    grow: GrowConfig | None = None
    log: list[str] = Setting(default_factory=list)

    @model_validator(mode="after")
    def _begins_once(self) -> Self:
        if self.start is not None and self.grow is not None:
            raise ValueError("start and grow both say what training begins with; give one of them")
        return self

    @model_validator(mode="after")
    def _files_hold_rows(self) -> Self:
        if self.training.tables_in == "file":
            for what, given in (
                ("model.compression", self.model.compression),
                ("grow", self.grow),
            ):
                if given is not None:
                    raise ValueError(
                        f"training.tables_in: file is not for {what}, whose tables are made in "
                        f"memory; leave one of them out"
                    )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without ``grow`` where there is none: as mlet wrote it before there was this."""
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if (name, value) != ("grow", None)}

    @field_validator("log", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("log")
    @classmethod
    def _known_logs(cls, value: list[str]) -> list[str]:
        known, seen = get_args(LogName), []
        for entry in value:
            name, equals, place = entry.partition("=")
            if name not in known or (equals and not place):
                raise ValueError(f"{entry!r} is no log; there are {', '.join(known)}, NAME=PLACE")
            if name in seen:
                raise ValueError(f"{name} is given twice")
            seen.append(name)
        return value
