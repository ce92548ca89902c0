"""Raw rows of the kind that a model was trained on, to be scored."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mlet.data.files import find_files
from mlet.data.readers.registry import open_raw
from mlet.data.readers.table import TableSource
from mlet.data.readers.table_schema import DenseColumn, TableSchema
from mlet.data.schema import DatasetSchema, RawFormat
from mlet.data.source import RawSource

#: Between the categories of a bag in a text, where the training data were no such texts.
BAG_SEPARATOR = "|"
#: Formats whose input is a folder itself.
_OF_FOLDERS = ("movielens",)


def open_rows(
    schema: DatasetSchema,
    files: list[Path],
    given: RawFormat | None,
    as_written: Collection[str] = (),
) -> RawSource:
    """Raw files as a source of rows with a model's features.

    Args:
        schema: of what the model was trained on.
        files: to be read: files, folders, patterns, and `mlet.data.compressed.STDIN`.
        given: their format; by default that of the training data. A table whose columns nothing
            describes has them by the names of the model's fields and dense features.
        as_written: as `TableSource` takes it.

    Raises:
        ConfigError, DataError: there is no such reader, or a file cannot be read.
    """
    form = given or schema.format or RawFormat(name="table")
    if form.name in _OF_FOLDERS:
        return open_raw(form.name, files)
    if form.name != "table":
        return open_raw(form.name, [file.path for file in find_files(files)])
    table = (
        table_of(schema)
        if form.table is None
        else TableSchema.parse(form.table, "the model's table format")
    )
    return TableSource(files, table, as_written=as_written)


def table_of(schema: DatasetSchema) -> TableSchema:
    """A table with a column for each field and dense feature of a model, by its name."""
    if schema.format is not None and schema.format.table is not None:
        return TableSchema.parse(schema.format.table, "the model's table format")
    return TableSchema(
        label="label",
        # How it is scaled is the model's to know.
        dense={feature.name: DenseColumn() for feature in schema.raw_dense},
        categorical=[field.name for field in schema.one_valued],
        multi_valued={field.name: BAG_SEPARATOR for field in schema.multi_valued},
    )
