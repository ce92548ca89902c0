"""Trained models as files for serving."""

from mlet.export.checkpoint import collapse_checkpoint
from mlet.export.safetensors import (
    CollapsedModel,
    load_collapsed,
    load_collapsed_model,
    save_collapsed,
)

__all__ = [
    "CollapsedModel",
    "collapse_checkpoint",
    "load_collapsed",
    "load_collapsed_model",
    "save_collapsed",
]
