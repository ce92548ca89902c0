"""Which raw columns a model is served, and as what."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import polars as pl

from mlet.data.readers.columns import TableColumns
from mlet.data.readers.rows import table_of
from mlet.data.schema import DatasetSchema
from mlet.data.texts import WHOLE_FLOAT, as_text, texts_of
from mlet.data.vocabulary import Vocabulary
from mlet.errors import ConfigError, ConversionError
from mlet.export.raw.times import TIMES, TimeColumn

#: Of what a graph's inputs are: double (B,), int64 (B,), strings (B,), strings (B, L).
Kind = Literal["number", "integer", "text", "texts"]
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


class RawColumn(NamedTuple):
    """One input of a graph."""

    name: str
    kind: Kind


class RawTable:
    """The raw columns of a model, and what their values stand for.

    Attributes:
        schema, vocabularies: of what the model was trained on.
        as_written: fields whose categories are told apart however they are written.
        integers: fields whose raw values are int64.
        missing: texts that stand for a missing value, beside "".
        time: the column that some fields are read off; None of most formats.
        columns: the inputs, in their order.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        vocabularies: Mapping[str, pl.DataFrame],
        integers: Collection[str] = (),
        output: str = "probability",
    ) -> None:
        """See the attributes; ``output`` is what a graph calls its own.

        Raises:
            ConfigError: an integer field is none, or holds what is no integer.
            ConversionError: two columns have one name, or one has that of the output.
        """
        self.schema = schema
        self.vocabularies = {
            field.name: Vocabulary(vocabularies[field.name], field.total_categories)
            for field in schema.fields
        }
        self.as_written = frozenset(
            name for name, known in self.vocabularies.items() if known.is_as_written
        )
        self._table = table_of(schema)
        self.missing = tuple(dict.fromkeys(texts_of(self._table.null_values)))
        self.time: TimeColumn | None = TIMES.get(schema.format.name) if schema.format else None
        self.integers = frozenset(integers)
        for name in sorted(self.integers):
            self._check_integers(name)
        self.columns = self._columns(output)

    @cached_property
    def rows(self) -> TableColumns:
        """Reads raw columns as `mlet.Predictor` does."""
        return TableColumns(self._table, self.as_written)

    @property
    def names(self) -> list[str]:
        """The columns of `rows`, the fields of time among them."""
        return self._table.features()

    def known(self, field: str) -> dict[str, int]:
        """The ids of a field's categories."""
        categories = self.vocabularies[field].table["category"].slice(1).to_list()
        return dict(zip(categories, range(1, len(categories) + 1), strict=True))

    def is_respelled(self, field: str) -> bool:
        """Whether 7.0 may be a category of a field, or stand for nothing, in another spelling."""
        texts = pl.concat(
            [self.vocabularies[field].table["category"], pl.Series(self.missing, dtype=pl.String)]
        )
        whole = WHOLE_FLOAT.replace(r"\.0+", "")
        return field not in self.as_written and bool(texts.str.contains(whole).any())

    @property
    def missing_numbers(self) -> list[float]:
        """Numbers that stand for a missing value."""
        found = []
        for text in self.missing:
            try:
                number = float(text)
            except ValueError:
                continue
            if as_text(pl.Series([number]), "")[0] == text:
                found.append(number)
        return found

    @property
    def missing_integers(self) -> list[int]:
        """The whole ones among them."""
        return [int(text) for text in self.missing if _is_int64(text)]

    @property
    def nbytes(self) -> int:
        """About what the vocabularies take in a file: each category, its length and its id."""
        texts = [known.table["category"].str.len_bytes() for known in self.vocabularies.values()]
        return sum(int(lengths.sum()) + 8 * len(lengths) for lengths in texts)

    def description(self) -> dict[str, Any]:
        """What whoever sends rows needs to know."""
        return {
            "columns": {column.name: column.kind for column in self.columns},
            "missing": ["", *self.missing],
        }

    def _check_integers(self, name: str) -> None:
        one_valued = [field.name for field in self.schema.one_valued]
        if name not in one_valued or (self.time and name in self.time.fields):
            raise ConfigError(
                f"int64 {name!r}: no one-valued field that is an input; there are "
                f"{', '.join(one_valued)}"
            )
        categories = self.vocabularies[name].table["category"].slice(1)
        for category in categories:
            if category == "":
                if not self.missing_integers:
                    raise ConfigError(
                        f"int64 {name!r}: a missing value is a category of this field, which no "
                        f"integer stands for; leave it a text, where '' does"
                    )
            elif not _is_int64(category):
                raise ConfigError(
                    f"int64 {name!r}: its category {category!r} is no 64-bit integer; leave it a "
                    f"text"
                )

    def _columns(self, output: str) -> tuple[RawColumn, ...]:
        dense = {feature.name for feature in self.schema.raw_dense}
        bags = {field.name for field in self.schema.multi_valued}
        columns: list[RawColumn] = []
        for name in self._table.features():
            kind: Kind
            if self.time is not None and name in self.time.fields:
                name, kind = self.time.name, "integer"
                if columns and (name, kind) in columns:
                    continue
            elif name in dense:
                kind = "number"
            elif name in bags:
                kind = "texts"
            else:
                kind = "integer" if name in self.integers else "text"
            columns.append(RawColumn(name, kind))
        names = [column.name for column in columns]
        if output in names:
            raise ConversionError(
                f"a column is called {output!r}, as the output of a graph is; rename it and train "
                f"again"
            )
        for name in names:
            if names.count(name) > 1:
                raise ConversionError(
                    f"a dense feature and a field are both called {name!r}, and inputs of a graph "
                    f"have one name each; rename one and train again"
                )
        return tuple(columns)


def _is_int64(text: str) -> bool:
    return _INTEGER.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63
