"""A prepared data set whose vocabularies go on with new raw rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlet.data.dataset import PreparedDataset
from mlet.data.identity import fingerprint
from mlet.data.schema import DenseSchema, EarlierRows, RawFormat
from mlet.data.source import RawColumns, RawSource
from mlet.data.vocabulary import KnownCategories, Vocabulary
from mlet.errors import ConfigError

#: Settings of a table that say how its files are written, not what their rows mean.
_OF_FILES = ("time", "time_format", "split", "separator", "quote", "group", "keep")
_ANEW = "make it as it was, or prepare a data set of its own, without --extend"


class Extension:
    """What new rows of a source take over of a data set.

    Args:
        root: the data set.
        source: the new rows.
        out: where the new data set will be.

    Attributes:
        schema: of the data set.
        names: all fields, in their order.
        min_counts: of every field that has a vocabulary of its own.

    Raises:
        ConfigError: the source's rows mean something else than the data set's; says what changed.
        DataError: there is no data set, or it is damaged.
    """

    def __init__(self, root: Path, source: RawSource, out: Path) -> None:
        if out.resolve() == root.resolve():
            raise ConfigError(
                f"{out}: a data set cannot be extended in its own place, where its rows would be "
                f"lost; choose another directory for the new ones"
            )
        self._data = PreparedDataset(root)
        self.root, self.schema = root, self._data.schema
        self.names = tuple(field.name for field in self.schema.fields)
        own = self.schema.vocabulary_fields
        self.min_counts = {field.name: field.min_count for field in own}
        change = self._change_of_format(source) or self._change_of_columns(source.columns)
        if change is not None:
            raise ConfigError(f"{source.description} cannot extend {root}: {change}; {_ANEW}")

    def check_min_counts(self, min_count: int | None, by_field: Mapping[str, int]) -> None:
        """Refuse minimum counts that are given and not the data set's.

        Raises:
            ConfigError: one is not; names the field.
        """
        for name in by_field:
            if name not in self.min_counts:
                what = "field with a vocabulary of its own" if name in self.names else "such field"
                fields = ", ".join(self.min_counts)
                raise ConfigError(f"min_count for {name!r}: no {what}; the fields are {fields}")
        for name, known in self.min_counts.items():
            given = by_field.get(name, min_count)
            if given not in (None, known):
                raise ConfigError(
                    f"the minimum count of field {name!r} is {known} in {self.root}, {given} here: "
                    f"it is by one that all categories get their ids; leave --min-count out"
                )

    def known(self, field: str) -> KnownCategories:
        """The ids and counts of a field so far."""
        (entry,) = (one for one in self.schema.fields if one.name == field)
        data = self._data
        known = KnownCategories(data.vocabulary(field), data.rare(field), entry.total_categories)
        self._check_spelling(field, known)
        if known.forgotten:
            warnings.warn(
                f"{self.root} did not keep the counts of rare categories of field {field!r} "
                f"({known.forgotten:,} occurrences): of those, new rows alone decide which get an "
                f"id",
                UserWarning,
                stacklevel=2,
            )
        return known

    def _check_spelling(self, field: str, known: KnownCategories) -> None:
        """Refuse categories of a table that rows of today would be spelled otherwise than."""
        if self.schema.format is None or self.schema.format.name != "table":
            return
        if Vocabulary(known.table, known.total_categories).is_as_written:
            raise ConfigError(
                f"{self.root}: the categories of field {field!r} are spelled as an earlier version "
                f"of mlet did, so that those of new rows would be others; prepare it again"
            )

    @property
    def earlier(self) -> EarlierRows:
        """What the new data set says of the old one."""
        return EarlierRows(
            data=fingerprint(self.schema),
            source=self.schema.source,
            rows=self.schema.counted_rows,
        )

    def _change_of_format(self, source: RawSource) -> str | None:
        """In what the raw rows are of another kind, where both are known."""
        then, now = self.schema.format, getattr(source, "format", None)
        if then is None or not isinstance(now, RawFormat):
            return None
        if then.name != now.name:
            return f"its format was {then.name}, it is {now.name} now"
        one, other = (_meaning(each.table or {}) for each in (then, now))
        for name in dict.fromkeys([*one, *other]):
            if one.get(name) != other.get(name):
                return f"{name!r} was {one.get(name)} in its schema, it is {other.get(name)} now"
        return None

    def _change_of_columns(self, columns: RawColumns) -> str | None:
        """In what the columns are others."""
        raw = {feature.name: feature for feature in self.schema.raw_dense}
        indicated = {feature.of for feature in self.schema.dense if feature.of is not None}
        return (
            _change_of_names("field", [f.name for f in self.schema.one_valued], columns.categorical)
            or _change_of_names(
                "multi-valued field",
                [field.name for field in self.schema.multi_valued],
                columns.multi_valued,
            )
            or self._change_of_shares(columns.shares)
            or _change_of_names("dense feature", raw, columns.dense)
            or _change_of_scales(raw, columns)
            or _change_of_names("missing indicator of", sorted(indicated), columns.indicated)
        )

    def _change_of_shares(self, now: Mapping[str, str]) -> str | None:
        """In what other fields share a vocabulary."""
        for field in self.schema.fields:
            if field.shares != now.get(field.name):
                one, other = (
                    f"of {owner!r}" if owner else "of its own"
                    for owner in (field.shares, now.get(field.name))
                )
                return f"field {field.name!r} had a vocabulary {one}, it has one {other} now"
        return None


def _meaning(table: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a table's schema that say what rows mean, but for its columns."""
    columns = ("dense", "categorical", "multi_valued")
    named = {name: value for name, value in table.items() if name not in (*_OF_FILES, *columns)}
    return {**named, "multi_valued": dict(sorted((table.get("multi_valued") or {}).items()))}


def _change_of_names(what: str, then: Iterable[str], now: Iterable[str]) -> str | None:
    then, now = list(then), list(now)
    missing = [name for name in then if name not in now]
    if missing:
        return f"the {what} {missing[0]!r} is missing"
    more = [name for name in now if name not in then]
    return f"the {what} {more[0]!r} is new" if more else None


def _change_of_scales(then: Mapping[str, DenseSchema], now: RawColumns) -> str | None:
    for name, scale in now.dense.items():
        if then[name].scale != scale:
            return f"the dense feature {name!r} was scaled by {then[name].scale!r}, not {scale!r}"
    return None
