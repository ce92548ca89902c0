"""Multi-layer embedding training: better or smaller embedding tables at no cost when serving."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mlet.errors import MletError

if TYPE_CHECKING:
    from mlet import nn, optim, theory
    from mlet.nn import Embedding, EmbeddingBag
    from mlet.scoring import Predictor
    from mlet.surgery import (
        collapse,
        collapse_state_dict,
        convert,
        grow,
        param_groups,
        summary,
    )

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
    "grow",
    "nn",
    "optim",
    "param_groups",
    "summary",
    "theory",
]

# Imported when asked for: torch takes seconds, and the command line's help needs none of it.
_PARTS = {"nn", "optim", "theory"}
_PLACES = {
    **dict.fromkeys(("Embedding", "EmbeddingBag"), "mlet.nn"),
    "Predictor": "mlet.scoring",
    **dict.fromkeys(
        ("collapse", "collapse_state_dict", "convert", "grow", "param_groups", "summary"),
        "mlet.surgery",
    ),
}


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"mlet.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'mlet' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
