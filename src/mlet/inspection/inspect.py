"""What a run's tables look like through the instruments of `mlet.theory`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlet.data import PreparedDataset
from mlet.errors import RunError
from mlet.export.checkpoint import read_state_dict
from mlet.inspection.gains import CategoryGains, category_gains
from mlet.task import Metric
from mlet.theory import (
    Factors,
    FlowByFrequency,
    Reweighting,
    TableSpectra,
    UpdateEnergy,
    factors_of,
    factors_of_state_dict,
    flow_by_frequency,
    reweighting,
    table_spectra,
    update_energy,
)
from mlet.training import RunDirectory
from mlet.training.load import load_trained
from mlet.training.predict import predict


@dataclass(frozen=True)
class TableInspection:
    """One two-layer table.

    Attributes:
        name: of the field or layer.
        n, k, d: categories, inner dimension, embedding dimension.
        reweighting, spectra, energy: see `mlet.theory`.
        flow: what categories receive, by training count; None where counts are not known.
    """

    name: str
    n: int
    k: int
    d: int
    reweighting: Reweighting
    spectra: TableSpectra
    energy: UpdateEnergy
    flow: FlowByFrequency | None


@dataclass(frozen=True)
class Inspection:
    """All two-layer tables of a run or checkpoint.

    Attributes:
        source: what was inspected.
        tables: its two-layer tables.
        history: the run's spectra in the course of training; empty if none were recorded.
        baseline: the run it is held against, if any, and its history.
        baseline_history: of the baseline.
        gains: in row loss per category against the baseline's, by field; empty without one.
        loss: that row loss.
    """

    source: str
    tables: tuple[TableInspection, ...]
    history: list[dict[str, Any]]
    baseline: str | None
    baseline_history: list[dict[str, Any]]
    gains: dict[str, CategoryGains]
    loss: Metric | None = None

    @property
    def recording_seconds(self) -> float:
        """What recording the history took."""
        return sum(float(record["seconds"]) for record in self.history)


def inspect_run(
    path: Path, baseline: Path | None = None, *, data: Path | None = None
) -> Inspection:
    """Inspect the best weights of a run; against those of a second one, if given.

    ``data`` is for runs whose data set has moved.

    Raises:
        RunError: a directory is no run or has no validation yet, the run has no two-layer table, or
            a run does not belong to the data.
    """
    run = RunDirectory(path)
    model, dataset = load_trained(run, data)
    tables = _tables(factors_of(model.embedding), str(path), dataset)
    gains: dict[str, CategoryGains] = {}
    history: list[dict[str, Any]] = []
    if baseline is not None:
        other = RunDirectory(baseline)
        theirs, _ = load_trained(other, dataset.root)
        columns = dataset.split("test")
        labels = columns.labels[model.task.label]
        losses = [model.task.row_losses(labels, predict(m, columns)) for m in (theirs, model)]
        gains = category_gains(dataset, *losses)
        history = other.spectra()
    return Inspection(
        str(path),
        tables,
        run.spectra(),
        None if baseline is None else str(baseline),
        history,
        gains,
        model.task.row_loss,
    )


def inspect_checkpoint(path: Path) -> Inspection:
    """Inspect the two-layer tables of any checkpoint; training counts are not known.

    Raises:
        RunError: the file cannot be read or has no two-layer table.
    """
    factors = factors_of_state_dict(read_state_dict(path))
    for name, table in factors.items():
        if not table.num_embeddings or not table.are_finite():
            raise RunError(
                f"{path}: table {name!r} has no rows, or holds NaN or infinite values; there is "
                f"nothing to be seen in it"
            )
    return Inspection(
        str(path),
        _tables(factors, str(path)),
        [],
        None,
        [],
        {},
    )


def table_energies(
    factors: Mapping[str, Factors], data: PreparedDataset | None = None
) -> dict[str, UpdateEnergy]:
    """The update energy of every two-layer table, weighted by training counts where known."""
    return {
        name: update_energy(table, _counts(data, name, table))
        for name, table in factors.items()
        if table.projection is not None
    }


def _counts(data: PreparedDataset | None, name: str, table: Factors) -> Tensor | None:
    if data is None:
        return None
    counts = data.training_counts[name]
    if len(counts) != table.num_embeddings:
        raise RunError(
            f"field {name!r}: its {len(counts)} categories share {table.num_embeddings} rows, and "
            f"what is inspected has a row for each; train with min_count 1"
        )
    return torch.from_numpy(counts)


def _tables(
    factors: Mapping[str, Factors], source: str, data: PreparedDataset | None = None
) -> tuple[TableInspection, ...]:
    energies = table_energies(factors, data)
    if not energies:
        raise RunError(f"{source}: no two-layer table to inspect (was it trained with inner_dim?)")
    result = []
    for name, energy in energies.items():
        table = factors[name]
        counts = _counts(data, name, table)
        result.append(
            TableInspection(
                name,
                table.num_embeddings,
                energy.inner_dim,
                table.embedding_dim,
                reweighting(table),
                table_spectra(table),
                energy,
                None if counts is None else flow_by_frequency(table, counts),
            )
        )
    return tuple(result)
