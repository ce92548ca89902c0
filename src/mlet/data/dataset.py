"""A prepared data set on disk: memory-mapped columns, vocabularies, training counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data import checksums, layout
from mlet.data.schema import FORMAT_VERSION, DatasetSchema, SplitName
from mlet.data.source import LABEL
from mlet.data.vocabulary import digest_categories
from mlet.errors import DataError


def _map(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """Memory-map a .npy file, checked to have the shape the schema promises."""
    try:
        # An empty array has no bytes to map; it is loaded instead.
        array: npt.NDArray[np.generic] = np.load(path, mmap_mode=None if 0 in shape else "r")
    except FileNotFoundError:
        raise DataError(f"{path}: missing; prepare the data set again") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data set again") from None
    if array.shape != shape:
        raise DataError(
            f"{path}: shape {array.shape} where the schema says {shape}; prepare the data set again"
        )
    return array


@dataclass(frozen=True)
class SplitColumns:
    """The columns of one split; N rows, memory-mapped.

    Attributes:
        labels: by name, (N,) uint8.
        dense: (N, D) float32.
        ids: one (N,) int32 array for each one-valued field, in the schema's order.
        bags: for each multi-valued field, values (V,) int32 and offsets (N + 1,) int64.
    """

    labels: dict[str, npt.NDArray[np.uint8]]
    dense: npt.NDArray[np.float32]
    ids: tuple[npt.NDArray[np.int32], ...]
    bags: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]

    def __len__(self) -> int:
        return len(self.dense)


class PreparedDataset:
    """Opens a directory made by `mlet.data.prepare`.

    Raises:
        DataError: the directory is no prepared data set, or is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        try:
            text = (self.root / layout.SCHEMA).read_text(encoding="utf-8")
            values = json.loads(text)
        except OSError:
            raise DataError(
                f"{root}: not a prepared data set (no {layout.SCHEMA}); make one with mlet prepare"
            ) from None
        except ValueError:
            raise DataError(f"{self.root / layout.SCHEMA}: damaged; prepare again") from None
        if values.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{root}: format version {values.get('format_version')}, this mlet reads "
                f"{FORMAT_VERSION}; prepare the data set again"
            )
        self.schema = DatasetSchema.parse(values, str(self.root / layout.SCHEMA))
        if any(field.digest is None for field in self.schema.fields):
            self.schema = self._with_digests()

    def _with_digests(self) -> DatasetSchema:
        """The schema of data that mlet 0.1 prepared, with what later versions write."""
        fields = [
            field.model_copy(update={"digest": digest_categories(self.vocabulary(field.name))})
            for field in self.schema.fields
        ]
        return self.schema.model_copy(update={"fields": fields})

    def _column(self, path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        checksums.verify(self.root, path, self.schema.checksums)
        return _map(path, shape)

    def split(self, name: SplitName) -> SplitColumns:
        """The columns of ``train``, ``valid`` or ``test``."""
        rows = self.schema.splits[name].rows
        bags = {}
        for field in self.schema.multi_valued:
            offsets = self._column(layout.bag_offsets(self.root, name, field.name), (rows + 1,))
            values = self._column(
                layout.bag_values(self.root, name, field.name), (int(offsets[-1]),)
            )
            bags[field.name] = (values, offsets)
        return SplitColumns(
            labels={LABEL: self._column(layout.labels(self.root, name), (rows,))},  # type: ignore[dict-item]
            dense=self._column(layout.dense(self.root, name), (rows, len(self.schema.dense))),  # type: ignore[arg-type]
            ids=tuple(
                self._column(layout.ids(self.root, name, field.name), (rows,))  # type: ignore[misc]
                for field in self.schema.one_valued
            ),
            bags=bags,  # type: ignore[arg-type]
        )

    @cached_property
    def training_counts(self) -> dict[str, npt.NDArray[np.int64]]:
        """For each field, how often each id occurs in the training split; 0 for id 0.

        Id 0 stands for categories that were never or too rarely seen to have a vector of their
        own, so its count as a category is 0 however many rows share it.
        """
        counts = {}
        for field in self.schema.fields:
            column = self.vocabulary(field.name)["count"].to_numpy().copy()
            column[0] = 0
            counts[field.name] = column
        return counts

    def vocabulary(self, field: str) -> pl.DataFrame:
        """``category`` and training ``count`` of a field's ids; row i is id i."""
        path = layout.vocabulary(self.root, field)
        checksums.verify(self.root, path, self.schema.checksums)
        try:
            return pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path}: unreadable ({error}); prepare the data set again") from None

    def rarest_counts(self, split: SplitName, field: str | None = None) -> npt.NDArray[np.int64]:
        """For each row of a split, the training count of its rarest category (N,).

        Args:
            split: the rows.
            field: count this field's category alone; None takes the minimum over all fields.
                A multi-valued field counts by the rarest value of the bag; empty bags do not count.

        Raises:
            DataError: no field of that name.
        """
        names = [entry.name for entry in self.schema.fields]
        if field is not None and field not in names:
            raise DataError(f"{self.root}: no field {field!r}; the fields are {', '.join(names)}")
        columns = self.split(split)
        rarest = np.full(len(columns), np.iinfo(np.int64).max)
        for entry, ids in zip(self.schema.one_valued, columns.ids, strict=True):
            if field in (None, entry.name):
                np.minimum(rarest, self.training_counts[entry.name][ids], out=rarest)
        for name, (values, offsets) in columns.bags.items():
            filled = np.flatnonzero(np.diff(offsets))
            if field in (None, name) and len(filled):
                counts = self.training_counts[name][values]
                rarest[filled] = np.minimum(
                    rarest[filled], np.minimum.reduceat(counts, offsets[filled])
                )
        return rarest
