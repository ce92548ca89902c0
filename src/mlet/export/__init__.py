"""Trained models as files for serving."""

from mlet.export.checkpoint import collapse_checkpoint
from mlet.export.onnx import to_onnx
from mlet.export.program import Exported, to_torch
from mlet.export.safetensors import load_collapsed, save_collapsed
from mlet.export.serving import ServingModule, serving_module

__all__ = [
    "Exported",
    "ServingModule",
    "collapse_checkpoint",
    "load_collapsed",
    "save_collapsed",
    "serving_module",
    "to_onnx",
    "to_torch",
]
