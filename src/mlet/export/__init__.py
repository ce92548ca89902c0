"""Trained models as files for serving."""

from mlet.export.checkpoint import collapse_checkpoint
from mlet.export.onnx import to_onnx
from mlet.export.program import Exported, to_torch
from mlet.export.safetensors import (
    CollapsedModel,
    load_collapsed,
    load_collapsed_model,
    save_collapsed,
)
from mlet.export.serving import ServingModule, serving_module

__all__ = [
    "CollapsedModel",
    "Exported",
    "ServingModule",
    "collapse_checkpoint",
    "load_collapsed",
    "load_collapsed_model",
    "save_collapsed",
    "serving_module",
    "to_onnx",
    "to_torch",
]
