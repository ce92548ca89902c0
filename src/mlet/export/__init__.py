"""Trained models as files for serving."""

from mlet.export.checkpoint import collapse_checkpoint
from mlet.export.safetensors import load_collapsed, save_collapsed

__all__ = ["collapse_checkpoint", "load_collapsed", "save_collapsed"]
