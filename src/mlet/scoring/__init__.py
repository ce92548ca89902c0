"""Raw rows to scores, with what a model file holds and nothing else."""

from mlet.scoring.files import score_files
from mlet.scoring.predictor import Predictor

__all__ = ["Predictor", "score_files"]
