"""Metrics for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlet.training.config import RunConfig
from mlet.training.logs.log import Status, hyperparameters
from mlet.training.logs.places import holds_events


class TensorBoardLog:
    """A folder of event files: scalars, the settings as hyperparameters and as text."""

    def __init__(self, folder: Path, config: RunConfig, done: int, metrics: list[str]) -> None:
        """Begin, or go on behind ``done`` steps; ``metrics`` are what hyperparameters are for."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        is_new = not holds_events(folder)
        # What was logged of steps that are now made again is forgotten.
        self._writer = SummaryWriter(str(folder), purge_step=None if is_new else done + 1)
        experiment, session, self._end = hparams(
            hyperparameters(config), dict.fromkeys(metrics, 0.0)
        )
        if is_new:
            # By `add_hparams` they would lie in a folder of their own, once training is over.
            self._writer._get_file_writer().add_summary(experiment)
            self._writer._get_file_writer().add_summary(session)
        self._writer.add_text("config", f"```yaml\n{config.to_yaml()}```", done)
        self._writer.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, status: Status) -> None:
        """See `Log`; of a run that is to go on, nothing is said."""
        if status == "finished":
            self._writer._get_file_writer().add_summary(self._end)
        self._writer.close()
