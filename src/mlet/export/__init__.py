"""Trained models as files for serving."""

from mlet.export.safetensors import load_collapsed, save_collapsed

__all__ = ["load_collapsed", "save_collapsed"]
