"""Studies: quality against dimension, per model and method, every arm tuned alike."""

from mlet.sweep.results import StudyResult
from mlet.sweep.runner import sweep
from mlet.sweep.study import StudyConfig

__all__ = ["StudyConfig", "StudyResult", "sweep"]
