"""Models that were found, as points of size and quality: which is the smallest, which are best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlet.nn.compression import Precision
from mlet.task import Metric

Kind: TypeAlias = Literal["slt", "single", "two-layer"]

#: A setting's values by name, in order.
Values: TypeAlias = tuple[tuple[str, float], ...]


def values_of(setting: Mapping[str, float]) -> Values:
    """What tells settings of an arm apart."""
    return tuple(sorted(setting.items()))


@dataclass(frozen=True)
class Point:
    """One trial's model at one precision, scored on validation.

    Attributes:
        kind: of its arm: ``slt``, the reference; ``single`` or ``two-layer``, the searches.
        trial: its number there.
        setting: what was tuned and searched.
        precision: of its tables.
        bytes: of its tables, see `mlet.models.CTRModel.table_bytes`.
        model_bytes: of all that is served.
        scores: on validation, by metric.
    """

    kind: Kind
    trial: int
    setting: Mapping[str, float]
    precision: Precision
    bytes: int
    model_bytes: int
    scores: Mapping[str, float]

    @property
    def key(self) -> tuple[str, Values]:
        """Of its setting, whatever the precision."""
        return self.kind, values_of(self.setting)

    @property
    def min_count(self) -> int:
        """Categories seen less often share rows."""
        return int(self.setting.get("min_count", 1))

    @property
    def dim_exponent(self) -> float:
        """By what power of its number of categories d of a field falls; 0 where all have one d."""
        return self.setting.get("dim_exponent", 0.0)

    def quality(self, metric: Metric) -> float:
        """By a metric, more being better."""
        return metric.quality(self.scores[metric.name])


#: The restriction that is none.
ALL = "all of it"

#: What is left out, by name, in the order of tables: which points are then allowed.
RESTRICTIONS: dict[str, Callable[[Point], bool]] = {
    ALL: lambda point: True,
    "without two layers": lambda point: point.kind != "two-layer",
    "without quantization": lambda point: point.precision == "float32",
    "without either": lambda p: p.kind != "two-layer" and p.precision == "float32",
    "without shared rows": lambda point: point.min_count == 1,
    "with one d for all fields": lambda point: not point.dim_exponent,
}


def smallest(
    points: Sequence[Point], metric: Metric, bar: float, refuted: Collection[Point] = ()
) -> Point | None:
    """The smallest whose quality is at least the bar; of equal ones the best.

    Args:
        points: those allowed.
        metric: that the bar is of, more being better.
        bar: the least quality.
        refuted: points that have turned out to be worse.
    """
    good = [p for p in points if p.quality(metric) >= bar and p not in refuted]
    return min(good, key=lambda p: (p.bytes, -p.quality(metric)), default=None)


def best_within(points: Sequence[Point], metric: Metric, most: int) -> Point | None:
    """The best of at most so many bytes; of equal ones the smallest."""
    fit = [point for point in points if point.bytes <= most]
    return max(fit, key=lambda p: (p.quality(metric), -p.bytes), default=None)


def front(points: Sequence[Point], metric: Metric) -> list[Point]:
    """The Pareto front of bytes against a metric: those that nothing as small is as good as, by
    size."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, -p.quality(metric))):
        if not found or point.quality(metric) > found[-1].quality(metric):
            found.append(point)
    return found
