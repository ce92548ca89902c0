"""The tables' spectra in the course of training."""

from __future__ import annotations

import time
from typing import Any

import torch

from mlet.data import PreparedDataset
from mlet.data.frequency import group_by_count
from mlet.models import CTRModel
from mlet.theory import factors_of, row_norms, table_spectra
from mlet.training.run import Progress

#: Share of the training time that recording may take.
MAX_SHARE = 0.02


class SpectraRecorder:
    """Makes the records of ``spectra.jsonl``.

    A record has the step, the seconds it took to make, and for each table its spectra
    (`mlet.theory.TableSpectra.record`) and the mean norm of its embeddings by training count.
    """

    def __init__(self, data: PreparedDataset) -> None:
        self._data = data

    @staticmethod
    def affordable(progress: Progress) -> bool:
        """Whether one more record would keep the cost within 2 % of the training time so far.

        The record of the start does not count, but tells what one costs.
        """
        costs = [float(record["seconds"]) for record in progress.spectra]
        return sum(costs[1:]) + max(costs) <= MAX_SHARE * progress.seconds

    @torch.no_grad()
    def record(self, model: CTRModel, progress: Progress) -> dict[str, Any]:
        """The state of all tables now."""
        if not progress.spectra:
            self._tables(model)  # warms up what records are made with, for an honest cost
        began = time.perf_counter()
        tables = self._tables(model)
        return {"step": progress.step, "seconds": time.perf_counter() - began, "tables": tables}

    def _tables(self, model: CTRModel) -> dict[str, Any]:
        tables = {}
        for name, factors in factors_of(model.embedding).items():
            names, groups = group_by_count(self._data.training_counts[name])
            norms = row_norms(factors).cpu()[model.embedding.rows.of(name)].numpy()
            tables[name] = {
                **table_spectra(factors).record(),
                "norms": {
                    label: float(norms[members].mean())
                    for label, members in zip(names, groups, strict=True)
                },
            }
        return tables
