"""A prepared data set on disk: memory-mapped columns, vocabularies, training counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data import checksums, layout
from mlet.data.parquet import read_parquet
from mlet.data.schema import FORMAT_VERSION, DatasetSchema, FieldSchema, SplitName
from mlet.data.source import LABEL
from mlet.data.vocabulary import digest_categories
from mlet.errors import DataError
from mlet.reading import read_sealed, reading

_Number = TypeVar("_Number", bound=np.number)


_REMEDY = "prepare the data set again"


def _map(path: Path, shape: tuple[int, ...], dtype: type[_Number]) -> npt.NDArray[_Number]:
    """Memory-map a .npy file, checked to have the shape the schema promises."""
    with reading(path, DataError, _REMEDY):
        # An empty array has no bytes to map; it is loaded instead.
        array: npt.NDArray[_Number] = np.load(path, mmap_mode=None if 0 in shape else "r")
    if array.shape != shape or array.dtype != dtype:
        raise DataError(
            f"{path}: {array.dtype} of shape {array.shape} where the schema says "
            f"{np.dtype(dtype)} of shape {shape}; {_REMEDY}"
        )
    return array


def _check_range(path: Path, ids: npt.NDArray[np.int32], size: int) -> None:
    """Of data without checksums, where a damaged id would be another category, or none."""
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise DataError(f"{path}: damaged (an id outside 0 to {size - 1}); {_REMEDY}")


@dataclass(frozen=True)
class SplitColumns:
    """The columns of one split; N rows, memory-mapped.

    Attributes:
        labels: by name, (N,) uint8.
        dense: (N, D) float32.
        ids: one (N,) int32 array for each one-valued field, in the schema's order.
        bags: for each multi-valued field, values (V,) int32 and offsets (N + 1,) int64.
        weights: what each row counts for, (N,) float32; None where all count alike.
        mean_weight: of the training rows, by which weights are divided in training.
        groups: (N,) int32, equal for rows of one group, -1 for rows of none; None where the data
            set names no group.
    """

    labels: dict[str, npt.NDArray[np.uint8]]
    dense: npt.NDArray[np.float32]
    ids: tuple[npt.NDArray[np.int32], ...]
    bags: dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]
    weights: npt.NDArray[np.float32] | None = None
    mean_weight: float = 1.0
    groups: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.dense)

    def rows(self, part: slice) -> SplitColumns:
        """Some of its rows, one after the other; nothing is copied."""
        offsets = slice(part.start, part.stop + 1)
        return replace(
            self,
            labels={name: column[part] for name, column in self.labels.items()},
            dense=self.dense[part],
            ids=tuple(column[part] for column in self.ids),
            bags={name: (values, at[offsets]) for name, (values, at) in self.bags.items()},
            weights=None if self.weights is None else self.weights[part],
            groups=None if self.groups is None else self.groups[part],
        )


class PreparedDataset:
    """Opens a directory made by `mlet.data.prepare`.

    Raises:
        DataError: the directory is no prepared data set, or is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        file = self.root / layout.SCHEMA
        for name in (layout.SCHEMA, layout.VOCABULARIES):  # a run has a schema, too
            if not (self.root / name).exists():
                raise DataError(
                    f"{root}: not a prepared data set (no {name}); make one with mlet prepare"
                )
        values = read_sealed(file, DataError, _REMEDY)
        if values.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{root}: format version {values.get('format_version')}, this mlet reads "
                f"{FORMAT_VERSION}; prepare the data set again"
            )
        self.schema = DatasetSchema.parse(values, str(file))
        if any(field.digest is None for field in self.schema.fields):
            self.schema = self._with_digests()

    def _with_digests(self) -> DatasetSchema:
        """The schema of data that mlet 0.1 prepared, with what later versions write."""
        fields = [
            field.model_copy(update={"digest": digest_categories(self.vocabulary(field.name))})
            for field in self.schema.fields
        ]
        return self.schema.model_copy(update={"fields": fields})

    def _column(
        self, path: Path, shape: tuple[int, ...], dtype: type[_Number]
    ) -> npt.NDArray[_Number]:
        checksums.verify(self.root, path, self.schema.checksums)
        return _map(path, shape, dtype)

    def _ids(self, path: Path, rows: int, field: FieldSchema) -> npt.NDArray[np.int32]:
        ids = self._column(path, (rows,), np.int32)
        if self.schema.checksums is None:
            _check_range(path, ids, field.num_categories)
        return ids

    def _bags(
        self, split: SplitName, rows: int, field: FieldSchema
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        path = layout.bag_offsets(self.root, split, field.name)
        offsets = self._column(path, (rows + 1,), np.int64)
        if offsets[0] != 0 or (self.schema.checksums is None and (np.diff(offsets) < 0).any()):
            raise DataError(f"{path}: damaged (offsets that do not rise from 0); {_REMEDY}")
        path = layout.bag_values(self.root, split, field.name)
        return self._ids(path, int(offsets[-1]), field), offsets

    def split(self, name: SplitName) -> SplitColumns:
        """The columns of ``train``, ``valid`` or ``test``."""
        rows = self.schema.splits[name].rows
        width = len(self.schema.dense)
        return SplitColumns(
            labels={LABEL: self._column(layout.labels(self.root, name), (rows,), np.uint8)},
            dense=self._column(layout.dense(self.root, name), (rows, width), np.float32),
            ids=tuple(
                self._ids(layout.ids(self.root, name, field.name), rows, field)
                for field in self.schema.one_valued
            ),
            bags={field.name: self._bags(name, rows, field) for field in self.schema.multi_valued},
            weights=self._weights(name, rows),
            mean_weight=self.schema.splits["train"].mean_weight or 1.0,
            groups=self._groups(name, rows),
        )

    def kept(self, split: SplitName, column: str) -> npt.NDArray[np.int32]:
        """The rows of `kept_values` of a column that no model sees (N,); -1 where nothing is."""
        path = layout.kept(self.root, split, column)
        return self._column(path, (self.schema.splits[split].rows,), np.int32)

    def kept_values(self, column: str) -> pl.Series:
        """The values that its numbers stand for."""
        path = layout.kept_values(self.root, column)
        checksums.verify(self.root, path, self.schema.checksums)
        with reading(path, DataError, _REMEDY):
            return read_parquet(path)["value"]

    def _groups(self, split: SplitName, rows: int) -> npt.NDArray[np.int32] | None:
        if self.schema.group is None:
            return None
        return self._column(layout.groups(self.root, split), (rows,), np.int32)

    def _weights(self, split: SplitName, rows: int) -> npt.NDArray[np.float32] | None:
        if not self.schema.weighted:
            return None
        return self._column(layout.weights(self.root, split), (rows,), np.float32)

    @cached_property
    def training_counts(self) -> dict[str, npt.NDArray[np.int64]]:
        """For each field, how often each id occurs in the training split, in all fields that share
        its vocabulary; 0 for id 0.

        Id 0 stands for categories that were never or too rarely seen to have a vector of their
        own, so its count as a category is 0 however many rows share it.
        """
        counts = {}
        for field in self.schema.vocabulary_fields:
            column = self.vocabulary(field.name)["count"].to_numpy().copy()
            column[0] = 0
            counts[field.name] = column
        return {field.name: counts[field.owner] for field in self.schema.fields}

    def vocabulary(self, field: str) -> pl.DataFrame:
        """``category`` and training ``count`` of a field's ids; row i is id i."""
        entry = next(one for one in self.schema.fields if one.name == field)
        path, size = layout.vocabulary(self.root, entry.owner), entry.num_categories
        checksums.verify(self.root, path, self.schema.checksums)
        with reading(path, DataError, _REMEDY):
            found = read_parquet(path)
            if found.columns != ["category", "count"] or len(found) != size:
                raise DataError(f"{path}: no vocabulary of {size} categories; {_REMEDY}")
        return found

    def rare(self, field: str) -> pl.DataFrame:
        """``category`` and training ``count`` of what was too rare in a field to have an id; empty
        where there was none, and of data of versions of mlet that did not keep it."""
        owner = next(one.owner for one in self.schema.fields if one.name == field)
        path, known = layout.rare(self.root, owner), self.schema.checksums
        if known is None or path.relative_to(self.root).as_posix() not in known:
            return self.vocabulary(field).clear()
        checksums.verify(self.root, path, known)
        with reading(path, DataError, _REMEDY):
            return read_parquet(path)

    @property
    def vocabularies(self) -> dict[str, pl.DataFrame]:
        """`vocabulary` of every field that has one of its own, by name."""
        return {field.name: self.vocabulary(field.name) for field in self.schema.vocabulary_fields}

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
