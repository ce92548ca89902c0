"""A trained model as it is served: plain tensors in, predictions out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mlet.data import Batch
from mlet.data.schema import DatasetSchema
from mlet.engine import engine_serves
from mlet.errors import ConfigError, ConversionError
from mlet.models import CTRModel
from mlet.nn import Bags
from mlet.nn.compression import PRECISIONS, Precision
from mlet.task import Binary


class ServingModule(nn.Module):
    """A collapsed model over plain tensors, by torch's operations alone.

    It can be exported, compiled and traced, for batches of any size, and nothing in it asks for a
    gradient. Made by `serving_module`.

    Attributes:
        inputs: the names of the tensors that it is called with, in their order: ``dense``
            (B, D) float32, where the data has dense features; ``ids`` (B, F₁) int32 or int64, one
            column for each one-valued field; and for each multi-valued field ``<field>.values``
            (V,), the categories of all rows end to end, and ``<field>.lengths`` (B,), how many of
            them each row has.
        output: the name of what it returns: ``probability`` (B,) of a click, or ``prediction`` of
            another task than ``binary``.

    Raises:
        IndexError: an id outside its field's table; of exported programs what their runtime raises.
        ValueError: lengths that are not those of the values; of exported programs the same.
    """

    def __init__(self, model: CTRModel, schema: DatasetSchema) -> None:
        super().__init__()
        self.model = model
        self._bags = tuple(field.name for field in schema.multi_valued)
        self._dense, self._ids = len(schema.dense), len(schema.one_valued)
        named = ["dense"] * (self._dense > 0) + ["ids"] * (self._ids > 0)
        named += [f"{name}.{part}" for name in self._bags for part in ("values", "lengths")]
        self.inputs = tuple(named)
        self.output = "probability" if isinstance(model.task, Binary) else "prediction"

    def forward(self, *inputs: Tensor) -> Tensor:
        """Predictions (B,)."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"expected {', '.join(self.inputs)}, got {len(inputs)} tensors")
        given = dict(zip(self.inputs, inputs, strict=True))
        bags = {
            name: _bags(given[f"{name}.values"], given[f"{name}.lengths"]) for name in self._bags
        }
        rows, device = inputs[-1].shape[0], inputs[-1].device
        dense = given["dense"] if self._dense else torch.zeros(rows, 0, device=device)
        nothing = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        ids = given["ids"] if self._ids else nothing
        return self.model.task.predictions(self.model(Batch({}, dense, ids, bags)))

    def random_inputs(self, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Tensors that it may be called with: ids of all categories alike, bags of up to four."""
        generator = torch.Generator().manual_seed(seed)
        given: list[Tensor] = []
        if self._dense:
            given.append(torch.randn(rows, self._dense, generator=generator))

        def ids(size: int, count: int) -> Tensor:
            return torch.randint(size, (count,), generator=generator)

        fields = self.model.embedding.fields
        columns = [ids(f.num_embeddings, rows) for f in fields if not f.multi_valued]
        if columns:
            given.append(torch.stack(columns, dim=1))
        for field in fields:
            if field.multi_valued:
                lengths = ids(5, rows)
                given += [ids(field.num_embeddings, int(lengths.sum())), lengths]
        return tuple(given)


def _bags(values: Tensor, lengths: Tensor) -> Bags:
    """The values (V,) of rows of these lengths (B,).

    What those cannot be a program would score in silence; to read behind the end of a list of one
    is an error in any runtime.
    """
    offsets = torch.cat([lengths.new_zeros(1), lengths]).cumsum(0)
    if engine_serves(values, lengths):
        return Bags(values, offsets)  # they are checked where they are looked up
    wrong = (lengths < 0).sum() + (lengths.sum() - values.shape[0]).abs()
    one = lengths.new_ones(1).index_select(0, wrong.reshape(1))
    return Bags(values, offsets * one)


def serving_module(
    model: CTRModel, schema: DatasetSchema, tables: Precision | None = None
) -> ServingModule:
    """A copy of a model as it is served; the model stays as it is.

    Args:
        model: as trained, or collapsed.
        schema: of the data it is for.
        tables: precision of its tables; None keeps that of a collapsed model, and is float32 for
            others. Tables of a linear part stay float32.

    Raises:
        ConfigError: there is no such precision.
        ConversionError: the tables are kept at another precision already, or cannot be.
    """
    if tables is not None and tables not in PRECISIONS:
        raise ConfigError(f"no precision {tables!r} of tables; there are {', '.join(PRECISIONS)}")
    kept = model.embedding.precision
    if kept not in ("float32", tables or kept):
        raise ConversionError(
            f"the tables are {kept} already, which {tables} cannot be made of; leave them as they "
            f"are, or collapse the run again"
        )
    served = model.collapse(tables or kept).eval().requires_grad_(False)
    return ServingModule(served, schema)


def description(module: ServingModule, schema: DatasetSchema) -> dict[str, Any]:
    """What whoever calls an exported model needs to know: kept in it as JSON, under ``mlet``."""
    return {
        "format": "mlet-export-1",
        "inputs": module.inputs,
        "output": module.output,
        "dense": [feature.name for feature in schema.dense],
        "ids": [field.name for field in schema.one_valued],
        "categories": {field.name: field.num_categories for field in schema.fields},
        "digests": {field.name: field.digest for field in schema.fields},
        "tables": module.model.embedding.precision,
    }
