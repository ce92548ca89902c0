"""Who watches a run."""

from __future__ import annotations

from typing import Protocol

from mlet.task import Task


class Observer(Protocol):
    """Watches a run, to show it."""

    def start(self, task: Task, steps: int, done: int) -> None:
        """Training begins, or resumes with ``done`` of at most ``steps`` steps behind it."""

    def step(self, loss: float, rows: int) -> None:
        """One step was made on ``rows`` rows."""

    def validation(self, record: dict[str, float]) -> None:
        """A validation was made; ``record`` is its line of ``metrics.jsonl``."""


class SilentObserver:
    """Shows nothing."""

    def start(self, task: Task, steps: int, done: int) -> None:
        """Nothing."""

    def step(self, loss: float, rows: int) -> None:
        """Nothing."""

    def validation(self, record: dict[str, float]) -> None:
        """Nothing."""
