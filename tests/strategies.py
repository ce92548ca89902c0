"""What Hypothesis draws from: layers and what they look up, schemas and raw rows."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from hypothesis import strategies as st
from torch import Tensor

from mlet.data.readers import TableSchema
from mlet.nn import Bags, Field, FieldEmbedding


@st.composite
def bags(draw: st.DrawFn, rows: int, num_embeddings: int, kind: torch.dtype = torch.int32) -> Bags:
    """``rows`` bags of categories, empty ones among them."""
    lengths = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    values = torch.randint(num_embeddings, (sum(lengths),), dtype=kind)
    return Bags(values, torch.tensor([0, *lengths]).cumsum(0))


@st.composite
def field_embeddings(draw: st.DrawFn) -> FieldEmbedding:
    """Ordinary and two-layer tables, of equal and of different d, single- and multi-valued."""
    fields = []
    same = draw(st.booleans())
    for place in range(draw(st.integers(1, 5))):
        dim = 2 if same else draw(st.integers(1, 3))
        fields.append(
            Field(
                f"f{place}",
                draw(st.integers(1, 9)),
                dim,
                draw(st.sampled_from([None, dim + 1, dim + 3])),
                multi_valued=draw(st.booleans()),
                pooling=draw(st.sampled_from(["sum", "mean"])),
            )
        )
    return FieldEmbedding(fields, sparse=draw(st.booleans())).double()


@st.composite
def lookups(draw: st.DrawFn, layer: FieldEmbedding) -> tuple[Tensor, dict[str, Bags]]:
    """What a layer is called with: ids (B, single-valued fields) and bags by field."""
    rows = draw(st.integers(1, 6))
    single = [torch.randint(f.num_embeddings, (rows,)) for f in layer.fields if not f.multi_valued]
    ids = torch.stack(single, 1) if single else torch.empty(rows, 0, dtype=torch.int64)
    drawn = {
        field.name: draw(bags(rows, field.num_embeddings))
        for field in layer.fields
        if field.multi_valued
    }
    return ids.to(draw(st.sampled_from([torch.int32, torch.int64]))), drawn


#: Text that a cell, a name or a category may hold.
words = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=8
)
#: Categories that have no other spelling, as True has in true and 7.0 in 7.
categories = words.filter(
    lambda word: word.lower() not in ("true", "false") and not re.fullmatch(r"-?\d+\.0+", word)
)
#: What a column or field may be called: spaces around a name in a header are dropped.
names = words.filter(lambda name: name != "" and name == name.strip() and "\n" not in name)


@dataclass(frozen=True)
class RawTable:
    """Rows, and the schema that says which column is what.

    Attributes:
        schema: as of a YAML file.
        columns: by name; lists of strings where the schema says multi-valued.
    """

    schema: dict[str, Any]
    columns: dict[str, list[Any]]

    def parsed(self) -> TableSchema:
        """The schema, validated."""
        return TableSchema.parse(self.schema, "the schema drawn")

    def write_csv(self, path: Path, quoting: int = csv.QUOTE_MINIMAL) -> Path:
        """The rows as RFC 4180 has them."""
        separators = self.schema["multi_valued"]
        cells = [
            [separators[name].join(bag) for bag in values] if name in separators else values
            for name, values in self.columns.items()
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(
                file, quoting=quoting, delimiter=self.schema["separator"], lineterminator="\n"
            )
            writer.writerow(self.columns)
            writer.writerows(zip(*cells, strict=True))
        return path

    def write_parquet(self, path: Path) -> Path:
        """The rows, with lists as lists."""
        pl.DataFrame(self.columns, strict=False).write_parquet(path)
        return path


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """A label, categorical, multi-valued and dense columns, under any names."""
    called = draw(st.lists(names, min_size=2, max_size=7, unique=True))
    label, *others = called
    roles = [draw(st.sampled_from(["categorical", "multi_valued", "dense"])) for _ in others]
    roles[0] = draw(st.sampled_from(["categorical", "multi_valued"]))
    schema: dict[str, Any] = {
        "label": label,
        "separator": draw(st.sampled_from([",", "\t", ";"])),
        "categorical": [],
        "multi_valued": {},
        "dense": {},
    }
    for name, role in zip(others, roles, strict=True):
        if role == "categorical":
            schema["categorical"].append(name)
        elif role == "dense":
            schema["dense"][name] = draw(st.sampled_from(["none", "log"]))
        else:
            schema["multi_valued"][name] = draw(st.sampled_from(["|", "; ", "::"]))
    return schema


@st.composite
def raw_tables(draw: st.DrawFn, min_rows: int = 12, max_rows: int = 30) -> RawTable:
    """Rows for a schema; missing values are empty cells."""
    schema = draw(schemas())
    rows = draw(st.integers(min_rows, max_rows))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=rows, max_size=rows))

    columns = {schema["label"]: [row % 2 for row in range(rows)]}
    for name in schema["categorical"]:
        few = draw(st.lists(categories, min_size=1, max_size=4))
        columns[name] = column(st.sampled_from(few))
    for name, separator in schema["multi_valued"].items():
        word = categories.filter(
            lambda text, marks=set(separator): not marks & set(text) and text != ""
        )
        few = draw(st.lists(word, min_size=1, max_size=4))
        columns[name] = column(st.lists(st.sampled_from(few), max_size=3))
    for name in schema["dense"]:
        columns[name] = column(
            st.integers(-50, 1_000) | st.floats(-50, 1_000, width=32).map(lambda x: x + 0.0)
        )
    return RawTable(schema, columns)
