"""What is searched for the smallest model: a study of three arms, tuned alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from mlet.data import PreparedDataset
from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError
from mlet.models import build_model
from mlet.nn.compression import PRECISIONS
from mlet.studies.datasets import DatasetConfig
from mlet.studies.methods import SLT, Method
from mlet.studies.study import RANGES, Arm, HalvingConfig, StudyConfig
from mlet.training import RunConfig
from mlet.training.rare_rows import own_rows

#: The name of the data set; models and optimizers have names of their own.
DATA = "data"
#: Training rows from which on trials are halved: on small sets it keeps what starts fast.
HALVED_FROM = 100_000
#: What the searches choose between: k of two-layer tables, and ends of the other ranges.
_INNER_DIMS = (16, 32, 64, 128)
_MOST_COUNT, _MOST_RARE_ROWS = 16, 64
#: How d falls with a table's number of categories: not at all, or the largest tables of real data
#: sets have a half to a fifteenth of it.
_EXPONENTS = (0.0, 0.1, 0.2, 0.3)
#: k is at least this many times d: below, two layers have nothing to give.
_WIDENING = 2

SINGLE = Method("single", "peer", {})
TWO_LAYER = Method("two-layer", "mlet", {"inner_dim": "auto"})


@dataclass(frozen=True)
class Whole:
    """Whole numbers from ``low`` to ``high``, in log scale."""

    low: int
    high: int


class ShrinkStudy(StudyConfig):
    """One data set, model and optimizer; its single dimension is the reference's.

    Attributes:
        tolerance: how far the headline metric (AUC) of what is chosen may be below that of the
            reference: tuned single layers of that dimension, in float32.
        max_bytes: of the tables, in the place of the tolerance: the best model of at most so many.
    """

    tolerance: PositiveFloat | None = None
    max_bytes: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        if (self.tolerance is None) == (self.max_bytes is None):
            raise ValueError("give exactly one of 'tolerance' and 'max_bytes'")
        return self

    @classmethod
    def of(cls, base: RunConfig, reference_dim: int, **values: Any) -> ShrinkStudy:
        """The study that varies a run.

        Args:
            base: whose dim, tables, step sizes and seed are replaced.
            reference_dim: d of the reference.
            values: further settings of the study; ``tuning`` has ``trials``.

        Raises:
            ConfigError: a setting cannot be.
        """
        if base.start is not None or base.grow is not None:
            raise ConfigError(
                "start, grow: trials begin on their own, not with the weights of a run"
            )
        if base.log:
            raise ConfigError("log: is of single runs; a search is kept in its own files")
        if base.model.min_count > 1:
            raise ConfigError(
                "model.min_count: is searched, and the reference has a row for each category; "
                "leave it out"
            )
        for name in ("field_dims", "dim_exponent"):
            if getattr(base.model, name):
                raise ConfigError(
                    f"model.{name}: d by field is searched, and the reference has one d; leave it "
                    f"out"
                )
        if base.model.compression is not None:
            raise ConfigError(
                f"model.compression: {base.model.compression.name!r} is another way to smaller "
                f"tables; leave it out (mlet sweep compares them)"
            )
        rate = base.optimizer.dense.learning_rate
        ranges: dict[str, Any] = {
            "weight_decay": (1e-8, 1e-5),
            "init_scale": (0.5, 4.0),
            "dense_learning_rate": (rate / 30, rate * 3),
        }
        if base.optimizer.tables.name != "sgd":
            ranges["damping"] = (0.02, 20.0)
        rows = PreparedDataset(base.data).schema.splits["train"].rows
        halving = HalvingConfig() if rows >= HALVED_FROM else None
        tuning = {**ranges, "halving": halving, **values.pop("tuning", {})}
        return cls.parse(
            {
                "datasets": {DATA: DatasetConfig(prepared=base.data)},
                "models": {base.model.name.replace(":", "."): base.model},
                "optimizers": {base.optimizer.tables.name: base.optimizer},
                "dims": [reference_dim],
                "training": base.training,
                "tuning": tuning,
                **values,
            },
            "shrink",
        )

    @property
    def reference_dim(self) -> int:
        """d of the reference, and the widest that is searched."""
        return self.dims[0]

    @property
    def fresh_seeds(self) -> range:
        """Those that confirm; trials have seed 0."""
        return range(1, self.seeds + 1)

    def arms(self) -> list[Arm]:
        """The reference, the search over single layers, the one over two."""
        model, optimizer = next(iter(self.models)), next(iter(self.optimizers))
        methods = (SLT, SINGLE, TWO_LAYER)
        return [Arm(DATA, model, optimizer, self.reference_dim, method) for method in methods]

    def trained(self, arm: Arm) -> Arm:
        """Every arm has runs of its own."""
        return arm

    def searched(self, arm: Arm) -> dict[str, Whole | tuple[float, ...]]:
        """What a search chooses beside what is tuned of the reference, too; choices are in the
        order of size."""
        if arm.method == SLT:
            return {}
        found: dict[str, Whole | tuple[float, ...]] = {
            "dim": Whole(1, self.reference_dim),
            "dim_exponent": _EXPONENTS,
            "min_count": Whole(1, _MOST_COUNT),
            "rare_rows": Whole(1, _MOST_RARE_ROWS),
            "co_occurrence": (0, 1),
        }
        if self.models[arm.model].products_alone():
            found["table_bias"] = (0, 1)
        if arm.method == TWO_LAYER:
            found["inner_dim"] = _INNER_DIMS
        return found

    def run(self, arm: Arm, setting: Mapping[str, float], seed: int, data: Path) -> RunConfig:
        """A training run; ``setting`` has what is tuned, and what is searched."""
        tuned = {name: setting[name] for name in ("learning_rate", *RANGES) if name in setting}
        if arm.method != SLT:
            changes = _changes(setting, _schema(data))
            method = replace(arm.method, changes=changes)
            arm = replace(arm, dim=int(setting["dim"]), method=method)
        return super().run(arm, tuned, seed, data)

    def smallest_bytes(self, data: Path) -> int:
        """Bytes of the tables of the smallest model that may be found."""
        opened = PreparedDataset(data)
        own = {name: own_rows(n, _MOST_COUNT) for name, n in opened.training_counts.items()}
        model = next(iter(self.models.values())).single_layer()
        smallest = build_model(
            model.model_copy(update={"dim": 1, "min_count": _MOST_COUNT, "own_rows": own}),
            opened.schema,
        )
        return min(smallest.like_collapsed(one).table_bytes() for one in PRECISIONS)


def _changes(setting: Mapping[str, float], schema: DatasetSchema) -> dict[str, Any]:
    """The model settings that a searched setting stands for.

    What the recipe has beside the second layer is tried with one layer, too, so that nothing is
    taken for the second layer's that is not.
    """
    count = int(setting["min_count"])
    changes: dict[str, Any] = {
        "dim_exponent": float(setting.get("dim_exponent", 0.0)),
        "min_count": count,
        "rare_rows": int(setting["rare_rows"]) if count > 1 else 1,
        "init": "co_occurrence" if setting["co_occurrence"] else "variance_matched",
        "table_bias": bool(setting.get("table_bias", 0)),
    }
    if "inner_dim" not in setting:
        return changes
    k = max(int(setting["inner_dim"]), _WIDENING * int(setting["dim"]))
    # A field with at most k categories has nothing to share: see mlet.nn.inner_dim.
    ordinary = {field.name: None for field in schema.fields if field.num_categories <= k}
    if len(ordinary) == len(schema.fields):
        ordinary = {}  # else there would be no two layers at all
    return {**changes, "inner_dim": k, "inner_dims": ordinary}


@lru_cache(maxsize=4)
def _schema(data: Path) -> DatasetSchema:
    return PreparedDataset(data).schema
