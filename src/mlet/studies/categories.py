"""How well the categories of a field are embedded, by how often they were seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlet.data import PreparedDataset
from mlet.data.frequency import group_by_count
from mlet.studies.methods import SLT
from mlet.studies.results import ArmResult, Panel
from mlet.studies.runs import read_test_scores

_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1_024)


@dataclass(frozen=True)
class FrequencyCurve:
    """Mean test row loss (logloss) of a field's categories, in groups of similar training count.

    Attributes:
        label: of the method.
        field: whose categories.
        counts: the groups, by range of training counts.
        losses: of each group, every category weighing the same however many test rows it has, and
            those rows by their weights, if they have some; mean over seeds.
    """

    label: str
    field: str
    counts: tuple[str, ...]
    losses: tuple[float, ...]


def frequency_curves(panel: Panel, dim: int) -> list[FrequencyCurve]:
    """SLT and MLET with each k at one dimension, for the one-valued field with most categories."""
    data = PreparedDataset(panel.data)
    columns = data.split("test")
    labels = columns.labels[panel.task.label]
    entries = data.schema.one_valued
    place = max(range(len(entries)), key=lambda number: entries[number].num_categories)
    field = entries[place].name
    ids = np.asarray(columns.ids[place])
    weights = np.ones(len(ids)) if columns.weights is None else columns.weights
    rows = np.bincount(ids, weights=weights, minlength=entries[place].num_categories)
    seen = np.flatnonzero(rows)
    names, members = group_by_count(data.training_counts[field][seen], _EDGES)

    def curve(arm: ArmResult) -> FrequencyCurve:
        losses = np.mean(
            [
                panel.task.row_losses(labels, read_test_scores(path).predictions)
                for path in arm.predictions
            ],
            axis=0,
        )
        means = np.bincount(ids, weights=losses * weights, minlength=len(rows))[seen] / rows[seen]
        return FrequencyCurve(
            arm.method.label, field, names, tuple(float(means[group].mean()) for group in members)
        )

    arms = [arm for method in (SLT, *panel.mlet_methods) for arm in panel.curve(method)]
    return [curve(arm) for arm in arms if arm.dim == dim]
