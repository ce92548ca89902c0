"""Multi-layer embedding training: better or smaller embedding tables at no cost when serving."""

from importlib.metadata import version

from mlet import nn, optim, theory
from mlet.errors import MletError
from mlet.nn import Embedding, EmbeddingBag
from mlet.scoring import Predictor
from mlet.surgery import collapse, collapse_state_dict, convert, param_groups, summary

__version__ = version("mlet")
__all__ = [
    "Embedding",
    "EmbeddingBag",
    "MletError",
    "Predictor",
    "__version__",
    "collapse",
    "collapse_state_dict",
    "convert",
    "nn",
    "optim",
    "param_groups",
    "summary",
    "theory",
]
