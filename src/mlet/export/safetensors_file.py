"""Files of tensors in the safetensors format, written and read a piece at a time.

The library's own writer makes a copy of everything in memory first, and its reader maps the file as
memory that could be written to, for which there must be room. Files are to the byte what it writes.
"""

from __future__ import annotations

import json
import mmap
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

#: Names of dtypes, in the order in which their tensors lie in a file, last ones first.
_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_DTYPES.values())}
_BLOCK_BYTES = 1 << 24


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors by name, and texts beside them.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    names = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name.encode()))
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            content = memoryview(as_bytes(tensors[name]))
            for start in range(0, len(content), _BLOCK_BYTES):
                block = content[start : start + _BLOCK_BYTES]
                while block:
                    block = block[file.write(block) :]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, which lie in the file and must not be written to, and the texts.

    Raises:
        Exception: whatever the library raises of a file that is damaged, and an OSError.
    """
    with safe_open(path, framework="numpy") as file:  # it checks the header
        metadata: dict[str, str] = file.metadata() or {}
    with path.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(start - 8))
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        if not prod(shape):
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(
                memory, dtype=dtype, count=prod(shape), offset=start + entry["data_offsets"][0]
            )
        tensors[name] = flat.view(shape)
    return tensors, metadata


def as_bytes(tensor: Tensor) -> Any:
    """The memory of a contiguous tensor on the CPU, uint8."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()
