"""A panel with made-up scores, for the arithmetic alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlet.data import PreparedDataset
from mlet.data.frequency import training_count_deciles
from mlet.studies import StudyConfig
from mlet.studies.methods import SLT, Method
from mlet.studies.results import ArmResult, Panel, Tuning
from mlet.studies.scores import RunScores
from mlet.studies.study import Arm

SAMPLES = 200


def mlet(k: int) -> Method:
    return Method(f"mlet-k{k}", "mlet", {"inner_dim": k})


def made_up(
    data: Path, auc: dict[tuple[Method, int], list[float]], spread: float, *, at_edge: bool = False
) -> tuple[StudyConfig, Panel]:
    """A panel with these AUCs by (method, d), rows moving all arms up and down together."""
    config = StudyConfig.parse(
        {
            "datasets": {"clicks": {"prepared": str(data)}},
            "models": ["dlrm"],
            "optimizers": ["adagrad"],
            "dims": sorted({dim for _, dim in auc}),
            "inner_dims": [16],
            "mlet": {},
            "seeds": len(next(iter(auc.values()))),
        },
        "study",
    )
    generator = np.random.default_rng(0)
    together = generator.normal(0, spread, SAMPLES)
    arms = []
    for (method, dim), values in auc.items():
        scores = tuple(
            RunScores(
                seed,
                {"auc": v, "logloss": 0.5, "calibration": 1.0},
                {"auc": float("nan"), "logloss": 0.5, "calibration": 1.0},
                v,
                10,
                2.0,
            )
            for seed, v in enumerate(values)
        )
        resamples = np.stack([np.stack([v + together, 1 - v - together], 1) for v in values])
        arms.append(
            ArmResult(
                Arm("clicks", "dlrm", "adagrad", dim, method),
                method.changes.get("inner_dim"),
                Tuning({"learning_rate": 0.02}, 6, 0, (), at_edge),
                scores,
                100 * dim,
                1_000,
                resamples,
                np.zeros((2, 3, 2)),
                (),
            )
        )
    dataset = PreparedDataset(data)
    slt = next(arm for arm in arms if arm.method == SLT)
    base = config.run(slt.arm, slt.tuning.setting, 0, data)
    slices = tuple(training_count_deciles(dataset))
    return config, Panel(
        "clicks",
        "dlrm",
        "adagrad",
        config.task,
        base,
        dataset.schema,
        data,
        tuple(arms),
        slices,
        10,
        5,
    )
