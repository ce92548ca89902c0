"""Raw rows of the kind that a model was trained on, to be scored."""

from __future__ import annotations

from pathlib import Path

from mlet.data.readers.registry import open_raw
from mlet.data.readers.table import TableSchema, TableSource
from mlet.data.schema import DatasetSchema, RawFormat
from mlet.data.source import RawSource

#: Between the categories of a bag in a text, where the training data were no such texts.
BAG_SEPARATOR = "|"


def open_rows(schema: DatasetSchema, files: list[Path], given: RawFormat | None) -> RawSource:
    """Raw files as a source of rows with a model's features.

    Args:
        schema: of what the model was trained on.
        files: to be read.
        given: their format; by default that of the training data. A table whose columns nothing
            describes has them by the names of the model's fields and dense features.

    Raises:
        ConfigError, DataError: there is no such reader, or a file cannot be read.
    """
    form = given or schema.format or RawFormat(name="table")
    if form.name != "table":
        return open_raw(form.name, files)
    if form.table is None:
        return TableSource(files, table_of(schema))
    return TableSource(files, TableSchema.parse(form.table, "the model's table format"))


def table_of(schema: DatasetSchema) -> TableSchema:
    """A table with a column for each field and dense feature of a model, by its name."""
    if schema.format is not None and schema.format.table is not None:
        return TableSchema.parse(schema.format.table, "the model's table format")
    return TableSchema(
        label="label",
        dense={one.name: one.scale for one in schema.dense},
        categorical=[field.name for field in schema.one_valued],
        multi_valued={field.name: BAG_SEPARATOR for field in schema.multi_valued},
    )
