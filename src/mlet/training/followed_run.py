"""A run of which another process writes the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlet.data.schema import DatasetSchema
from mlet.training.config import RunConfig
from mlet.training.processes import Processes
from mlet.training.run import RunDirectory


def run_directory(root: Path, processes: Processes) -> RunDirectory:
    """That of a run that these processes train."""
    return RunDirectory(root) if processes.lead else FollowedRun(root)


class FollowedRun(RunDirectory):
    """Reads as any run does, and leaves writing to the first of several processes."""

    def create(self, config: RunConfig) -> None:
        """Nothing."""

    def write_config(self, config: RunConfig) -> None:
        """Nothing."""

    def write_schema(self, schema: DatasetSchema) -> None:
        """Nothing."""

    def write_begun(self, config: RunConfig) -> None:
        """Nothing."""

    def write_failure(self, reason: str) -> None:
        """Nothing."""

    def write_metrics(self, records: list[dict[str, int | float]]) -> None:
        """Nothing."""

    def write_spectra(self, records: list[dict[str, Any]]) -> None:
        """Nothing."""

    def save_last(self, state: dict[str, Any]) -> None:
        """Nothing."""

    def save_best(self, state: dict[str, Any]) -> None:
        """Nothing."""
