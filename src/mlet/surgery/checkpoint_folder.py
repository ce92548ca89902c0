"""Two-layer tables in a folder of ``torch.distributed.checkpoint`` to ordinary ones, in another."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save

from mlet.errors import ConversionError
from mlet.nn.factored import INNER, PROJECTION, WEIGHT, collapse_table


def collapse_folder(folder: Path, out: Path) -> None:
    """Write a checkpoint of the plain model from one of the two-layer model, shard after shard.

    Pairs ``x.inner`` and ``x.projection`` become ``x.weight``; what an optimizer kept of them is
    left out, and all else is copied. At any time one shard of one table is in memory, as it was
    saved. The model is not built.

    Raises:
        ConversionError: there is no checkpoint in ``folder``, no pair in it, or ``out`` exists.
    """
    if out.exists() and any(out.iterdir()):
        raise ConversionError(f"{out}: there is something in it already; name a new folder")
    reader = _Reader(folder)
    tables = _pairs(reader.metadata.state_dict_metadata, folder)
    planner = _Collapse(reader, tables)
    writer = FileSystemWriter(out, thread_count=1)
    save({}, storage_writer=writer, planner=planner, no_dist=True)


def _pairs(entries: Mapping[str, Any], folder: Path) -> list[str]:
    found = []
    for name, entry in entries.items():
        table, _, last = name.rpartition(".")
        other = entries.get(f"{table}.{PROJECTION}")
        if last != INNER or not isinstance(other, TensorStorageMetadata):
            continue
        shapes = tuple(entry.size), tuple(other.size)
        if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][0]:
            raise ConversionError(f"{folder}: {name!r} {shapes[0]} and its projection {shapes[1]}")
        found.append(table)
    if not found:
        raise ConversionError(
            f"{folder}: nothing to collapse, there is no pair of 'inner' and 'projection'"
        )
    return found


class _Reader:
    """A saved checkpoint, of which parts are read."""

    def __init__(self, folder: Path) -> None:
        self._reader = FileSystemReader(folder)
        try:
            self.metadata: Metadata = self._reader.read_metadata()
        except (OSError, EOFError) as error:
            raise ConversionError(
                f"{folder}: no checkpoint of torch.distributed.checkpoint, or one that was not "
                f"written to its end ({error})"
            ) from error
        self._reader.set_up_storage_reader(self.metadata, is_coordinator=True)

    def tensor(self, name: str, chunk: ChunkStorageMetadata | None = None) -> Tensor:
        """A tensor, or a part of it."""
        entry = self.metadata.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)
        whole = ChunkStorageMetadata(torch.Size([0] * len(entry.size)), entry.size)
        part = chunk or whole
        into = torch.empty(part.sizes, dtype=entry.properties.dtype)
        items = create_read_items_for_chunk_list(name, entry, [part])
        self._reader.read_data(LoadPlan(items), _Into(into)).wait()
        return into

    def bytes(self, name: str) -> io.BytesIO:
        """Something else that was saved."""
        nothing = torch.Size([0])
        index = MetadataIndex(name)
        item = ReadItem(LoadItemType.BYTE_IO, index, nothing, index, nothing, nothing)
        planner = _Into(torch.empty(0))
        self._reader.read_data(LoadPlan([item]), planner).wait()
        return planner.read


class _Into(LoadPlanner):
    """Reads into one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.into, self.read = tensor, io.BytesIO()

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.read = io.BytesIO(value.read())

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        found = self.into
        for dim, (start, size) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            found = found.narrow(dim, start, size)
        return found

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass

    def set_up_planner(self, *_: Any, **__: Any) -> None:
        pass

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan


class _Collapse(SavePlanner):
    """What is to be written: each part is read, and multiplied, when it is its turn."""

    def __init__(self, reader: _Reader, tables: list[str]) -> None:
        self._reader, self._tables = reader, set(tables)
        self._paths: dict[str, Any] = {}

    def set_up_planner(self, *_: Any, **__: Any) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        metadata = self._reader.metadata
        paths: dict[str, tuple[Any, ...]] = metadata.planner_data or {}
        items: list[WriteItem] = []
        owned = [self._owner(table, paths) for table in self._tables]
        for name, entry in metadata.state_dict_metadata.items():
            table, _, last = name.rpartition(".")
            path = paths.get(name, (name,))
            if table in self._tables and last == PROJECTION:
                continue
            if table in self._tables and last == INNER:
                name = f"{table}.{WEIGHT}"
                path = (*path[:-1], f"{str(path[-1]).removesuffix(INNER)}{WEIGHT}")
                items += self._products(table, name)
            elif any(f"{owner}.{part}." in name for owner in owned for part in (INNER, PROJECTION)):
                continue
            elif isinstance(entry, BytesStorageMetadata):
                items.append(WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO))
            else:
                items += [
                    _item(name, chunk, entry.properties, entry.size) for chunk in entry.chunks
                ]
            self._paths[name] = path
        return SavePlan(items)

    def _owner(self, table: str, paths: Mapping[str, tuple[Any, ...]]) -> str:
        """The table's name in its model: without that which the model's state went by."""
        last = str(paths.get(f"{table}.{INNER}", (f"{table}.{INNER}",))[-1])
        return last.removesuffix(f".{INNER}")

    def _products(self, table: str, name: str) -> list[WriteItem]:
        entries = self._reader.metadata.state_dict_metadata
        rows = cast("TensorStorageMetadata", entries[f"{table}.{INNER}"])
        projection = cast("TensorStorageMetadata", entries[f"{table}.{PROJECTION}"])
        dim = projection.size[1]
        size = torch.Size([rows.size[0], dim])
        chunks = [
            ChunkStorageMetadata(torch.Size([first, 0]), torch.Size([count, dim]))
            for first, count in _spans(rows.chunks)
        ]
        return [_item(name, chunk, projection.properties, size) for chunk in chunks]

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = create_default_global_save_plan(all_plans)
        metadata.planner_data = self._paths
        return plans, metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        name = write_item.index.fqn
        if write_item.type == WriteItemType.BYTE_IO:
            return self._reader.bytes(name)
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        table, _, last = name.rpartition(".")
        if table not in self._tables or last != WEIGHT:
            return self._reader.tensor(name, chunk)
        projection = self._reader.tensor(f"{table}.{PROJECTION}")
        wide = torch.Size([chunk.sizes[0], projection.shape[0]])
        rows = self._reader.tensor(f"{table}.{INNER}", ChunkStorageMetadata(chunk.offsets, wide))
        return collapse_table(rows, projection)


def _spans(chunks: Sequence[ChunkStorageMetadata]) -> list[tuple[int, int]]:
    """Where parts of the product begin, and how many rows they have: as many as the parts of W2.

    Of rows whose columns are in several parts, none has more numbers of W2 than each of those.
    """
    found: list[tuple[int, int]] = []
    shared = Counter((chunk.offsets[0], chunk.sizes[0]) for chunk in chunks)
    for (first, count), parts in sorted(shared.items()):
        step = -(-count // parts)
        starts = range(first, first + count, step) if count else [first]
        found += [(start, min(step, first + count - start)) for start in starts]
    return found


def _item(
    name: str, chunk: ChunkStorageMetadata, properties: TensorProperties, size: torch.Size
) -> WriteItem:
    index = MetadataIndex(name, chunk.offsets)
    data = TensorWriteData(chunk, properties, size)
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)
