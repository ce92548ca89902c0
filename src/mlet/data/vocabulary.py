"""The categories of one field, their ids and their training counts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data.parquet import write_parquet
from mlet.data.texts import one_spelling

#: Batches of counts folded together at once; bounds memory while counting.
_FOLD = 8
#: Categories digested at once; bounds memory.
_DIGESTED = 1_000_000


def digest_categories(table: pl.DataFrame) -> str:
    """What the ids 1, 2, … of a vocabulary stand for, in 32 hexadecimal digits.

    Training counts are left out: the same categories in the same order are the same vocabulary.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in table["category"].slice(1).to_frame().iter_slices(_DIGESTED):
        # Each category behind its length: no two lists of categories give the same text.
        texts = pl.concat_str(pl.col("category").str.len_bytes(), pl.lit(":"), pl.col("category"))
        digest.update(part.select(texts.str.join("")).item().encode())
    return digest.hexdigest()


#: Categories are searched for where the vocabulary has this many for each of them.
_SEARCHED_BELOW = 64


@dataclass(frozen=True)
class KnownCategories:
    """What a data set that is extended knows of a field.

    Attributes:
        table: ``category`` and ``count``, row i for id i, as of `Vocabulary`.
        rare: the same of categories below the minimum count, which have no id.
        total_categories: how many it has counted, those of which nothing is kept included.
    """

    table: pl.DataFrame
    rare: pl.DataFrame
    total_categories: int

    @property
    def forgotten(self) -> int:
        """Occurrences of rare categories of which no counts are kept: by mlet 0.1, all of them."""
        return int(self.table["count"][0]) - int(self.rare["count"].sum())


class VocabularyBuilder:
    """Counts categories batch by batch."""

    def __init__(self) -> None:
        self._counts: list[pl.DataFrame] = []

    def add(self, categories: pl.Series) -> None:
        """Count a batch of categories (String; missing counts as the category "")."""
        rows = pl.DataFrame({"category": categories.fill_null("")})
        self.merge(rows.group_by("category").agg(pl.len().cast(pl.Int64).alias("count")))

    def merge(self, counts: pl.DataFrame) -> None:
        """Take over what was counted elsewhere, as `counts`."""
        self._counts.append(counts)
        if len(self._counts) >= _FOLD:
            self._counts = [self.counts()]

    def counts(self) -> pl.DataFrame:
        """``category`` and ``count`` so far, in any order."""
        return pl.concat(self._counts).group_by("category").agg(pl.col("count").sum())

    def build(self, min_count: int, known: KnownCategories | None = None) -> Vocabulary:
        """Number the categories seen at least ``min_count`` times, the most frequent first.

        Categories that are ``known`` come before them, with the ids they have; what was counted of
        all others adds up.
        """
        counts = self.counts()
        numbered, forgotten, total = counts.clear(), 0, len(counts)
        if known is not None:
            numbered = _added_up(known.table.slice(1), counts)
            counts = counts.join(numbered, on="category", how="anti")
            counts = pl.concat([counts, known.rare]).group_by("category").agg(pl.col("count").sum())
            total = known.total_categories + len(counts) - len(known.rare)
            forgotten = known.forgotten
        counts = counts.sort(["count", "category"], descending=[True, False])
        kept, rare = (
            counts.filter(pl.col("count") >= min_count),
            counts.filter(pl.col("count") < min_count),
        )
        unknown = pl.DataFrame(
            {"category": [None], "count": [forgotten + int(rare["count"].sum())]},
            schema={"category": pl.String, "count": pl.Int64},
        )
        return Vocabulary(pl.concat([unknown, numbered, kept]), total, rare)


def _added_up(table: pl.DataFrame, counts: pl.DataFrame) -> pl.DataFrame:
    """The same categories in the same order, with what was counted of them since."""
    both = table.join(counts, on="category", how="left", maintain_order="left", suffix=" since")
    total = pl.col("count") + pl.col("count since").fill_null(0)
    return both.select("category", total.alias("count"))


class Vocabulary:
    """Categories to ids. Id 0 is "unknown or rare"; the others are ordered by training count,
    those of each extension after the ones before it."""

    def __init__(
        self, table: pl.DataFrame, total_categories: int, rare: pl.DataFrame | None = None
    ) -> None:
        """``table``: ``category`` (null for id 0) and ``count``, row i for id i; ``rare``: the same
        of categories without an id, where they are known."""
        self.table = table
        self.total_categories = total_categories
        self.rare = table.clear() if rare is None else rare

    def __len__(self) -> int:
        return len(self.table)

    def encode(self, categories: pl.Series) -> npt.NDArray[np.int32]:
        """Ids (int32) of the categories; 0 for those not in the vocabulary."""
        if len(categories) * _SEARCHED_BELOW < len(self):
            return self._search(categories.fill_null(""))
        known = self.table.select("category", pl.int_range(pl.len(), dtype=pl.Int32).alias("id"))
        joined = pl.DataFrame({"category": categories.fill_null("")}).join(
            known, on="category", how="left", maintain_order="left"
        )
        return joined["id"].fill_null(0).to_numpy()

    def _search(self, categories: pl.Series) -> npt.NDArray[np.int32]:
        """The same for a few, where a hash table of all would be made for them."""
        names, ids = self._sorted
        if not len(categories):
            return np.empty(0, np.int32)
        places = np.minimum(names.search_sorted(categories).to_numpy(), len(names) - 1)
        found = (names.gather(places) == categories).to_numpy()
        return np.where(found, ids[places], 0).astype(np.int32)

    @cached_property
    def _sorted(self) -> tuple[pl.Series, npt.NDArray[np.int32]]:
        """The categories in order, and their ids."""
        names = self.table["category"].slice(1)
        order = names.arg_sort()
        return names.gather(order), (order.to_numpy() + 1).astype(np.int32)

    @property
    def is_as_written(self) -> bool:
        """Whether it holds what `one_spelling` would have changed, as of data that had none."""
        categories = self.table["category"].slice(1)
        return not one_spelling(categories).equals(categories)

    def write(self, path: Path, rare: Path) -> None:
        """Write the table as Parquet, and, if there are any, the ``rare`` categories."""
        write_parquet(self.table, path)
        if len(self.rare):
            rare.parent.mkdir(exist_ok=True)
            write_parquet(self.rare, rare)
