"""The errors mlet raises for its users to read."""

from __future__ import annotations


class MletError(Exception):
    """A problem the user can act on; its text names the thing, the place and the remedy.

    The command line prints it as one line and exits with code 2.
    """


class ConfigError(MletError):
    """A setting is unknown, missing or out of its range."""


class DataError(MletError):
    """A raw file, a prepared data set or a value in either is not what it should be."""


class RunError(MletError):
    """A run directory is incomplete, occupied or belongs to another configuration."""


class WriteError(RunError):
    """A file cannot be written: what else is to be written will fail too."""


class TrainingError(MletError):
    """Training diverged: the loss is NaN or infinite."""


class ConversionError(MletError):
    """A model or checkpoint cannot be converted or collapsed as asked."""
