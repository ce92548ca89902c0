"""Where things are in a prepared data set; shared by its writer and its reader."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from mlet.data.schema import SPLITS, SplitName

SCHEMA, VOCABULARIES, RARE = "schema.json", "vocabularies", "rare"
LABELS, DENSE, PROBABILITIES = "label.npy", "dense.npy", "probability.npy"
WEIGHTS, GROUPS, KEPT = "weight.npy", "group.npy", "kept"


def file_name(field: str) -> str:
    """A field's name as part of a file name: unusual characters are percent-encoded."""
    return quote(field, safe=" ()[]+,=@")


def vocabulary(root: Path, field: str) -> Path:
    """Parquet: ``category`` and training ``count``; row i is id i, row 0 "unknown or rare"."""
    return root / VOCABULARIES / f"{file_name(field)}.parquet"


def rare(root: Path, field: str) -> Path:
    """Parquet: ``category`` and training ``count`` of what was too rare for an id; there if any."""
    return root / RARE / f"{file_name(field)}.parquet"


def is_vocabulary(file: str) -> bool:
    """Whether a path within the data set, as in its checksums, is that of a vocabulary."""
    return file.startswith((f"{VOCABULARIES}/", f"{RARE}/"))


def create_folders(root: Path) -> None:
    """Make the folders that the other paths lie in."""
    (root / VOCABULARIES).mkdir()
    for split in SPLITS:
        for kind in ("fields", "bags"):
            (root / split / kind).mkdir(parents=True)


def labels(root: Path, split: SplitName) -> Path:
    """(N,) uint8."""
    return root / split / LABELS


def dense(root: Path, split: SplitName) -> Path:
    """(N, D) float32, scaled."""
    return root / split / DENSE


def weights(root: Path, split: SplitName) -> Path:
    """(N,) float32, as they were given; of data with weights only."""
    return root / split / WEIGHTS


def groups(root: Path, split: SplitName) -> Path:
    """(N,) int32, equal for rows of one group, -1 for rows of none; of data with groups only."""
    return root / split / GROUPS


def kept(root: Path, split: SplitName, column: str) -> Path:
    """(N,) int32: rows of `kept_values`, -1 where nothing is; of columns that are kept."""
    return root / split / KEPT / f"{file_name(column)}.npy"


def kept_values(root: Path, column: str) -> Path:
    """Parquet: the ``value`` that every number of `kept` stands for."""
    return root / KEPT / f"{file_name(column)}.parquet"


def probabilities(root: Path, split: SplitName) -> Path:
    """(N,) float64 true click probabilities; synthetic data only."""
    return root / split / PROBABILITIES


def co_occurrences(root: Path, width: int) -> Path:
    """Of ``torch.save``: `mlet.data.co_occurrence` vectors of all fields, once they were needed."""
    return root / f"co_occurrence-{width}.pt"


def ids(root: Path, split: SplitName, field: str) -> Path:
    """(N,) int32 of a one-valued field."""
    return root / split / "fields" / f"{file_name(field)}.npy"


def bag_values(root: Path, split: SplitName, field: str) -> Path:
    """(V,) int32: the categories of all rows' bags, end to end."""
    return root / split / "bags" / f"{file_name(field)}.values.npy"


def bag_offsets(root: Path, split: SplitName, field: str) -> Path:
    """(N + 1,) int64: where each row's bag starts in the values; the last entry is V."""
    return root / split / "bags" / f"{file_name(field)}.offsets.npy"
