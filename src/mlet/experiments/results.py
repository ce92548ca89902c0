"""The outcome of a comparison, and the statements it supports."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mlet.data.schema import DatasetSchema
from mlet.experiments.iso_quality import IsoQuality, iso_quality
from mlet.experiments.statistics import Estimate, estimate
from mlet.metrics import Scores
from mlet.training import RunConfig

Measure = Literal["auc", "logloss"]
Rows = Literal["test", "rare"]
Outcome = Literal["better", "worse", "unclear"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class RunScores:
    """One seed of one arm.

    Attributes:
        test, rare: scores on all test rows and on the rare ones.
        valid_auc: of the kept weights.
        steps, seconds: of training.
    """

    seed: int
    test: Scores
    rare: Scores
    valid_auc: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class ArmResult:
    """One configuration over all seeds.

    Attributes:
        dim, inner_dim: d, and k (None: single-layer).
        learning_rate: of the tables, as chosen on validation.
        runs: by seed.
        model_bytes: the collapsed model's size.
    """

    dim: int
    inner_dim: int | None
    learning_rate: float
    runs: tuple[RunScores, ...]
    model_bytes: int

    @property
    def method(self) -> str:
        """``SLT`` or ``MLET``."""
        return "SLT" if self.inner_dim is None else "MLET"

    def values(self, rows: Rows, measure: Measure) -> list[float]:
        """One number for each seed."""
        return [getattr(getattr(run, rows), measure) for run in self.runs]

    def estimate(self, rows: Rows, measure: Measure) -> Estimate:
        """Mean and t-interval over seeds."""
        return estimate(self.values(rows, measure))

    @property
    def seconds(self) -> float:
        """Mean training time of a run."""
        return sum(run.seconds for run in self.runs) / len(self.runs)

    @property
    def step_milliseconds(self) -> float:
        """Mean training time of a step."""
        return 1e3 * sum(run.seconds for run in self.runs) / sum(run.steps for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """All arms of one comparison.

    Attributes:
        schema: of the data set.
        base: the run that the arms vary.
        arms: SLT and MLET for each dimension.
        tried_rates: step sizes tried for every arm; empty if none was tuned.
        diverged: names of the arms whose step size diverged with some seed, and was left out.
        rare_below: training count below which a row's rarest category makes it rare.
        rare_rows: test rows that are.
        jobs: runs trained at once; training times are of that load.
        seconds: of this call (resumed runs took theirs before).
        machine: what it ran on.
    """

    schema: DatasetSchema
    base: RunConfig
    arms: tuple[ArmResult, ...]
    tried_rates: tuple[float, ...]
    diverged: tuple[str, ...]
    rare_below: int
    rare_rows: int
    jobs: int
    seconds: float
    machine: str

    @property
    def mlet_arms(self) -> list[ArmResult]:
        """All two-layer arms."""
        return [arm for arm in self.arms if arm.inner_dim is not None]

    @property
    def inner_dims(self) -> list[int]:
        """The k of the MLET arms."""
        return sorted({arm.inner_dim for arm in self.arms if arm.inner_dim is not None})

    def curve(self, inner_dim: int | None) -> list[ArmResult]:
        """The arms of SLT (None) or of one k, by dimension."""
        arms = [arm for arm in self.arms if arm.inner_dim == inner_dim]
        return sorted(arms, key=lambda arm: arm.dim)

    def gain(self, arm: ArmResult, rows: Rows = "test", measure: Measure = "auc") -> Estimate:
        """MLET minus SLT of the same dimension, paired by seed."""
        slt = next(other for other in self.curve(None) if other.dim == arm.dim)
        pairs = zip(arm.values(rows, measure), slt.values(rows, measure), strict=True)
        return estimate([mlet - single for mlet, single in pairs])

    def outcome(self, arm: ArmResult) -> Outcome:
        """Whether the interval of the gain in test AUC leaves out zero, and on which side."""
        gain = self.gain(arm)
        if gain.margin is None or abs(gain.mean) <= gain.margin:
            return "unclear"
        return "better" if gain.mean > 0 else "worse"

    def reduction(self, arm: ArmResult, rows: Rows = "test") -> IsoQuality | None:
        """Iso-quality reduction by mean AUC; None where the AUC is undefined."""
        curve = {slt.dim: slt.estimate(rows, "auc").mean for slt in self.curve(None)}
        quality = arm.estimate(rows, "auc").mean
        if any(math.isnan(value) for value in (*curve.values(), quality)):
            return None
        return iso_quality(curve, arm.dim, quality)

    def verdict(self) -> list[str]:
        """Sentences for a reader in a hurry: where MLET helped, and where it did not."""
        sentences = []
        for inner in self.inner_dims:
            for outcome, what in (
                ("better", "beat SLT of the same dimension in test AUC at"),
                ("worse", "was worse than SLT of the same dimension in test AUC at"),
                ("unclear", "cannot be told apart from SLT, with these seeds, at"),
            ):
                arms = [arm for arm in self.curve(inner) if self.outcome(arm) == outcome]
                texts = [f"d={arm.dim} ({self.gain(arm).mean:+.4f})" for arm in arms]
                if texts:
                    sentences.append(f"MLET with k={inner} {what} {', '.join(texts)}.")
        if edge := self._at_the_edge():
            sentences.append(
                f"The chosen learning rate is the largest or smallest tried for {', '.join(edge)}; "
                f"a wider grid may serve these better."
            )
        if self.diverged:
            sentences.append(f"Diverged, and left out: {', '.join(self.diverged)}.")
        return sentences

    def _at_the_edge(self) -> list[str]:
        """Arms whose learning rate might have been better beyond the ones tried."""
        if len(self.tried_rates) < 2:
            return []
        ends = (min(self.tried_rates), max(self.tried_rates))
        return [
            f"{arm.method} d={arm.dim}" + ("" if arm.inner_dim is None else f" k={arm.inner_dim}")
            for arm in self.arms
            if arm.learning_rate in ends
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; NaN becomes null."""
        arms = []
        for arm in self.arms:
            entry: dict[str, Any] = {
                "method": arm.method.lower(),
                "dim": arm.dim,
                "inner_dim": arm.inner_dim,
                "learning_rate": arm.learning_rate,
                "model_bytes": arm.model_bytes,
                "train_seconds": arm.seconds,
                "step_milliseconds": arm.step_milliseconds,
            }
            for rows in ("test", "rare"):
                entry[rows] = {
                    measure: asdict(arm.estimate(rows, measure)) for measure in ("auc", "logloss")
                }
                if arm.inner_dim is not None:
                    reduction = self.reduction(arm, rows)
                    entry[rows]["auc_gain"] = asdict(self.gain(arm, rows))
                    entry[rows]["reduction"] = asdict(reduction) if reduction else None
            entry["runs"] = [
                {**asdict(run), "test": run.test._asdict(), "rare": run.rare._asdict()}
                for run in arm.runs
            ]
            arms.append(entry)
        values = {
            "source": self.schema.source,
            "splits": self.schema.model_dump(mode="json")["splits"],
            "base": self.base.model_dump(mode="json"),
            "tried_rates": list(self.tried_rates),
            "diverged": list(self.diverged),
            "rare": {"below": self.rare_below, "rows": self.rare_rows},
            "machine": self.machine,
            "jobs": self.jobs,
            "seconds": self.seconds,
            "verdict": self.verdict(),
            "arms": arms,
        }
        plain: dict[str, Any] = without_nan(values)
        return plain

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """Plain values with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
