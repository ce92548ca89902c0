"""A run's model as one file of ordinary tables, checked against the trained one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from mlet.errors import RunError
from mlet.export import load_collapsed, save_collapsed
from mlet.nn.compression import Precision
from mlet.table_files import tables_in
from mlet.training.load import load_trained
from mlet.training.memory import table_files
from mlet.training.predict import predict
from mlet.training.run import RunDirectory

_CHECKED_ROWS = 10_000
#: How files that ``torch.save`` wrote are named.
_TORCH = (".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class CollapsedRun:
    """What collapsing did.

    Attributes:
        rows: validation rows on which trained and collapsed model were compared.
        largest_difference: between their click probabilities.
        trained_bytes, collapsed_bytes: size of the embedding parameters before and after.
    """

    rows: int
    largest_difference: float
    trained_bytes: int
    collapsed_bytes: int


def collapse_run(
    run: Path,
    out: Path,
    *,
    precision: Precision | None = None,
    data: Path | None = None,
    overwrite: bool = False,
) -> CollapsedRun:
    """Write the collapsed model of a run to ``out`` and compare its scores on real rows.

    Args:
        run: its directory.
        out: the file.
        precision: of the tables; float32 by default.
        data: for a run whose data set has moved.
        overwrite: replace ``out``.

    Raises:
        RunError: the run has no weights yet, or ``out`` exists and ``overwrite`` is false, or is
            named as a file of torch's.
    """
    directory = RunDirectory(run)
    config = directory.config()
    if out.suffix in _TORCH:
        raise RunError(
            f"{out}: the model of a run is written as safetensors; name it .safetensors (only "
            f"checkpoints are collapsed to {out.suffix})"
        )
    if out.exists() and not overwrite:
        raise RunError(f"{out} already exists: pass --overwrite or choose another file")
    precision = precision or directory.precision()
    trained, dataset = load_trained(directory, data)
    vocabularies = dataset.vocabularies
    save_collapsed(trained, config.model, dataset.schema, out, precision, vocabularies=vocabularies)
    with tables_in(table_files(config, run)):
        collapsed, _, _ = load_collapsed(out)
    rows = dataset.split("valid")
    before = predict(trained, rows, max_rows=_CHECKED_ROWS)
    after = predict(collapsed, rows, max_rows=_CHECKED_ROWS)
    return CollapsedRun(
        rows=len(before),
        largest_difference=float(np.abs(before - after).max()),
        trained_bytes=_bytes(trained.embedding),
        collapsed_bytes=_bytes(collapsed.embedding),
    )


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
