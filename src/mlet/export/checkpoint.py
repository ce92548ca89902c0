"""Any checkpoint of a converted model, collapsed without building the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlet.atomic import atomic_path
from mlet.errors import ConversionError, RunError
from mlet.reading import load_torch, reading
from mlet.surgery import collapse_state_dict

#: Where training frameworks keep the ``state_dict`` within a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class CollapsedCheckpoint:
    """What was collapsed.

    Attributes:
        tables: number of two-layer tables.
        before, after: bytes of all tensors.
        left_out: entries that are no tensors, of which safetensors keeps none.
    """

    tables: int
    before: int
    after: int
    left_out: tuple[str, ...] = ()


def collapse_checkpoint(path: Path, out: Path, *, overwrite: bool = False) -> CollapsedCheckpoint:
    """Write the plain model's ``state_dict`` of a converted model's checkpoint.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save`` wrote: a ``state_dict``, or a mapping
            with one under ``state_dict``, ``model_state_dict`` or ``model``.
        out: written as safetensors if it is named so, else with ``torch.save``.
        overwrite: replace ``out`` if it exists.

    Raises:
        RunError: a file cannot be read or written, or ``out`` exists.
        ConversionError: there is no ``state_dict`` of two-layer tables in it.
    """
    if out.exists() and not overwrite:
        raise RunError(f"{out} already exists: pass --overwrite or choose another file")
    state = read_state_dict(path)
    try:
        plain = collapse_state_dict(state)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None
    failures = (SafetensorError, RuntimeError)
    left_out: list[str] = []
    with atomic_path(out, failures=failures) as temporary:
        if out.suffix == ".safetensors":
            left_out = [name for name, value in plain.items() if not isinstance(value, Tensor)]
            save_file(_separate(plain), temporary)
        else:
            torch.save(plain, temporary)
    tables = len(state) - len(plain)
    return CollapsedCheckpoint(tables, _bytes(state), _bytes(plain), tuple(left_out))


def read_state_dict(path: Path) -> Mapping[str, Any]:
    """The ``state_dict`` in a checkpoint.

    Raises:
        RunError: the file cannot be read.
        ConversionError: there is no ``state_dict`` in it.
    """
    path = Path(path)
    with reading(path, RunError, "save the model's state_dict() again", missing="no such file"):
        if path.suffix == ".safetensors":
            return load_file(path)
        content = load_torch(path)
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path}: holds a {type(content).__name__}, expected a state_dict")
    return content


def _separate(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors with memory of their own: the format keeps no ties and no other values."""
    return {
        name: value.detach().clone().contiguous()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _bytes(state: Mapping[str, Any]) -> int:
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
