"""What a search found: the chosen model, and what each part of it is worth."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlet.data.schema import DatasetSchema
from mlet.studies.shrink.points import Point
from mlet.studies.shrink.study import ShrinkStudy
from mlet.studies.statistics import Estimate, estimate
from mlet.task import Metric


@dataclass(frozen=True)
class Choice:
    """A point that was trained again with fresh seeds.

    Attributes:
        name: what was left out to come to it, of `RESTRICTIONS`; of the reference its own.
        point: as it was found in the search.
        trials: how many finished trials it was chosen from.
        valid, test: its metrics, by name, for each fresh seed.
        runs: directories of the runs, by seed.
    """

    name: str
    point: Point
    trials: int
    valid: Mapping[str, tuple[float, ...]]
    test: Mapping[str, tuple[float, ...]]
    runs: tuple[Path, ...]

    def estimate(self, metric: Metric) -> Estimate:
        """Mean over fresh seeds on test, and its interval."""
        return estimate(self.test[metric.name])

    def difference(self, other: Choice, metric: Metric) -> Estimate:
        """This one's minus another's on test, paired by seed."""
        pairs = zip(self.test[metric.name], other.test[metric.name], strict=True)
        return estimate([mine - theirs for mine, theirs in pairs])

    def times_smaller(self, other: Choice) -> float:
        """How many times as many bytes another takes."""
        return other.point.bytes / self.point.bytes


@dataclass(frozen=True)
class ShrinkResult:
    """Everything a report needs.

    Attributes:
        study: its settings.
        schema: of the data set.
        points: every finished trial at every precision.
        given_up: trials that were not trained to their end, or could not be, by arm.
        reference: the wide model of single layers, in float32.
        choices: for each restriction what was chosen; None where nothing of it fits.
        model_file: the chosen model, as it is served.
        seed: of the run that it is of.
        seconds: of this call.
        jobs: runs at once.
    """

    study: ShrinkStudy
    schema: DatasetSchema
    points: tuple[Point, ...]
    given_up: Mapping[str, int]
    reference: Choice
    choices: Mapping[str, Choice | None]
    model_file: Path
    seed: int
    seconds: float
    jobs: int

    @property
    def chosen(self) -> Choice:
        """What was asked for."""
        found = next(iter(self.choices.values()))
        assert found is not None
        return found

    def field_dims(self, point: Point) -> dict[str, int]:
        """d of every table of a point's model, by the field that it is of."""
        setting = point.setting
        model = next(iter(self.study.models.values())).model_copy(
            update={
                "dim": int(setting.get("dim", self.study.reference_dim)),
                "dim_exponent": point.dim_exponent,
            }
        )
        return model.dims_of(self.schema)

    @property
    def bar(self) -> float | None:
        """The least quality on validation of what may be chosen; None where bytes are given."""
        if self.study.tolerance is None:
            return None
        return self.reference.point.quality(self.study.task.headline) - self.study.tolerance

    @property
    def machine(self) -> str:
        """What it ran on, in words."""
        return f"{platform.machine()}, Python {platform.python_version()}, {self.jobs} at once"
