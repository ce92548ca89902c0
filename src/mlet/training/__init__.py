"""Training runs: configuration, the loop, metrics, checkpoints."""

from mlet.training.config import RunConfig
from mlet.training.inner_dims import with_inner_dims
from mlet.training.loop import resume, train
from mlet.training.run import RunDirectory, Summary

__all__ = ["RunConfig", "RunDirectory", "Summary", "resume", "train", "with_inner_dims"]
