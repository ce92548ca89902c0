"""Collapsed models as safetensors: ordinary tables under their fields' names.

``embedding.<field>`` holds the n × d table of a field, in the order of the data set's ids;
``vocabulary.<field>`` the bytes of a Parquet file whose row i is the category of id i. Of fields
that share them each is there once, by the field that they share. The other names are those of the
model's ``state_dict``. The metadata, JSON under the key ``mlet``, is enough to build the model
again (one key, since the format keeps no order among several and the same run should give the same
bytes).
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from mlet.atomic import atomic_path
from mlet.data.schema import DatasetSchema
from mlet.errors import RunError
from mlet.export.safetensors_file import as_bytes, read_tensors, write_tensors
from mlet.models import CTRModel, ModelConfig, build_model
from mlet.nn.compression import PRECISIONS, Precision
from mlet.reading import checksum, reading

_TABLE, _VOCABULARY = "embedding.", "vocabulary."
_FORMAT = "mlet-collapsed-1"


def save_collapsed(
    model: CTRModel,
    config: ModelConfig,
    schema: DatasetSchema,
    path: Path,
    precision: Precision = "float32",
    *,
    vocabularies: Mapping[str, pl.DataFrame] | None = None,
) -> int:
    """Collapse ``model`` and write it to ``path``, whole or not at all.

    Args:
        model, config, schema: the model, its settings, and what it was trained on.
        path: of the file.
        precision: of the tables.
        vocabularies: of every field that has one of its own, with a column ``category``; without
            them the file scores encoded rows alone.

    Returns:
        Bytes of the tensors that are served.

    Raises:
        RunError: the file cannot be written, or names of fields cannot be told apart in it.
    """
    tensors = {
        name: tensor.cpu().contiguous()
        for name, tensor in model.collapse_around(nn.Identity(), precision).state_dict().items()
    }
    for field in model.embedding.table_names:
        for part, tensor in model.embedding.collapsed(field, precision).items():
            name = _key(field, part)
            if name in tensors:
                raise RunError(f"{path}: two fields have a tensor {name!r}; rename field {field!r}")
            tensors[name] = tensor.cpu().contiguous()
    served: int = sum(tensor.nbytes for tensor in tensors.values())
    for name, table in (vocabularies or {}).items():
        tensors[_VOCABULARY + name] = _packed(table)
    plain = config.single_layer()
    metadata: dict[str, Any] = {
        "format": _FORMAT,
        "version": version("mlet"),
        "model": plain.model_dump(mode="json"),
        "precision": precision,
        "schema": schema.model_dump(mode="json", exclude={"checksums"}),
    }
    metadata["seal"] = _seal(tensors, metadata)
    with atomic_path(path) as temporary:
        write_tensors(tensors, temporary, {"mlet": json.dumps(metadata)})
    return served


def _packed(vocabulary: pl.DataFrame) -> Tensor:
    """The categories as the bytes of a Parquet file (uint8)."""
    buffer = io.BytesIO()
    vocabulary.select("category").write_parquet(buffer, compression="zstd")
    return torch.from_numpy(np.frombuffer(buffer.getvalue(), np.uint8).copy())


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> int:
    """CRC-32 of all that is in the file."""
    total = checksum(metadata)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(as_bytes(tensor), total)
    return total


def _key(field: str, part: str) -> str:
    """The name of a field's tensor: the field's alone for a table."""
    return _TABLE + field if part == "weight" else f"{_TABLE}{field}/{part}"


def _parts(field: str, own: Collection[str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of a field's tensors by part, of which it has its ``own``."""
    named = {part: _key(field, part) for part in own}
    if any(name in tensors for name in named.values()):
        return {part: name for part, name in named.items() if name in tensors}
    # mlet 0.1 had other names for some.
    prefix = _key(field, "")
    return {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}


@dataclass(frozen=True)
class CollapsedModel:
    """All that is in a file written by `save_collapsed`.

    Attributes:
        model: in evaluation mode.
        config, schema: its settings, and what it was trained on.
        vocabularies: ``category`` of the ids of every field; None in files of earlier versions.
    """

    model: CTRModel
    config: ModelConfig
    schema: DatasetSchema
    vocabularies: dict[str, pl.DataFrame] | None


def load_collapsed(path: Path) -> tuple[CTRModel, ModelConfig, DatasetSchema]:
    """The plain model in a file written by `save_collapsed`, in evaluation mode.

    Raises:
        RunError: the file is missing, damaged or something else.
    """
    found = load_collapsed_model(path)
    return found.model, found.config, found.schema


def load_collapsed_model(path: Path) -> CollapsedModel:
    """What is in a file written by `save_collapsed`. Raises as `load_collapsed`."""
    metadata, tensors = _read(path)
    # mlet 0.1 took the precision for a setting of the model.
    old_precision = metadata["model"].pop("quantize", None)
    precision: Precision = metadata.get("precision") or old_precision or "float32"
    if precision not in PRECISIONS:
        raise RunError(f"{path}: tables of precision {precision!r}, which this mlet does not know")
    config = ModelConfig.parse(metadata["model"], str(path))
    schema = DatasetSchema.parse(metadata["schema"], str(path))
    vocabularies = _vocabularies(path, schema, tensors)
    model = build_model(config, schema)
    if precision != "float32":
        model = model.like_collapsed(precision)
    taken: set[str] = set()
    try:
        for field in model.embedding.table_names:
            names = _parts(field, model.embedding.parts(field), tensors)
            parts = {part: tensors[name] for part, name in names.items()}
            model.embedding.load_collapsed(field, parts)
            taken.update(names.values())
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    others = {name: tensor for name, tensor in tensors.items() if name not in taken}
    missing, unexpected = model.load_state_dict(others, strict=False)
    lost = [name for name in missing if not name.startswith(_TABLE)]
    if lost or unexpected:
        raise RunError(f"{path}: tensors missing {lost} or unknown {unexpected}")
    return CollapsedModel(model.eval(), config, schema, vocabularies)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors, found to be those that were written."""
    remedy = "collapse the run again"
    with reading(path, RunError, remedy, missing="no such file"):
        tensors, texts = read_tensors(Path(path))
        metadata: dict[str, Any] = json.loads(texts.get("mlet", "{}"))
    if metadata.get("format") != _FORMAT:
        raise RunError(f"{path}: not written by mlet collapse")
    seal = metadata.pop("seal", None)  # of what mlet 0.1 wrote there is none
    if seal is not None and seal != _seal(tensors, metadata):
        raise RunError(f"{path}: damaged (it is not what was written); {remedy}")
    return metadata, tensors


def _vocabularies(
    path: Path, schema: DatasetSchema, tensors: dict[str, Tensor]
) -> dict[str, pl.DataFrame] | None:
    """Those of all fields, taken from among the tensors; None where there are none."""
    names = {field.name: _VOCABULARY + field.name for field in schema.vocabulary_fields}
    if not any(name in tensors for name in names.values()):
        return None
    found = {}
    with reading(path, RunError, "collapse the run again"):
        for field in schema.vocabulary_fields:
            packed = tensors.pop(names[field.name]).numpy().tobytes()
            found[field.name] = pl.read_parquet(io.BytesIO(packed))
            if len(found[field.name]) != field.num_categories:
                raise RunError(f"{path}: no vocabulary of {field.num_categories} categories")
    return {field.name: found[field.owner] for field in schema.fields}
