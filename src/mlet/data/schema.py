"""``schema.json`` of a prepared data set: what its columns are and how they came to be."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from mlet.data.source import DenseScale, SplitBy
from mlet.settings import Settings

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

FORMAT_VERSION = 1


class FieldSchema(Settings):
    """One categorical field.

    Attributes:
        name: as in the raw data.
        num_categories: size of its table, id 0 ("unknown or rare") included.
        multi_valued: whether a row holds a bag of categories.
        min_count: training occurrences below which a category became "unknown or rare".
        total_categories: distinct categories in the training split before ``min_count``.
        digest: of the categories in the order of their ids; what rows of its table stand for.
        shares: another field, whose vocabulary, and embedding table, it has; None for its own.
    """

    name: str
    num_categories: int
    multi_valued: bool
    min_count: int
    total_categories: int
    digest: str | None = None
    shares: str | None = None

    @property
    def owner(self) -> str:
        """The field whose vocabulary it has: itself, if it shares none."""
        return self.shares or self.name

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what it does not share: as mlet wrote it before there was this."""
        values: dict[str, Any] = dump(self)
        return {name: v for name, v in values.items() if (name, v) != ("shares", None)}


class DenseSchema(Settings):
    """One dense feature and the scaling that is already applied to its column.

    Attributes:
        name: as in the raw data.
        scale: see `mlet.data.source.DenseScale`; ``missing`` is 1 where another feature is missing.
        of: that other feature.
        mean, deviation: of the training rows, for ``standard``.
        quantiles: of the training rows, evenly spaced, for ``quantile``.
        missing_in_training: whether a training row lacks it; None where that is not known.
    """

    name: str
    scale: DenseScale | Literal["missing"]
    of: str | None = None
    mean: float | None = None
    deviation: float | None = None
    quantiles: list[float] | None = None
    missing_in_training: bool | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what this scale has not: of the others as mlet wrote it before there was this."""
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if value is not None}


class RawFormat(Settings):
    """How raw rows were read, so that more of their kind can be.

    Attributes:
        name: of the reader, as of ``mlet prepare``.
        table: of the reader ``table`` its settings (`mlet.data.readers.TableSchema`).
    """

    name: str
    table: dict[str, Any] | None = None


class EarlierRows(Settings):
    """What a data set extends: rows that its vocabularies have counted, and that are not in it.

    Attributes:
        data: `mlet.data.identity.fingerprint` of that data set.
        source: one line on its raw data.
        rows: training rows that were counted, those of what it extends itself included.
    """

    data: str
    source: str
    rows: int


class SplitSchema(Settings):
    """One split: its rows, its share of clicks and, for synthetic data, the best scores possible.

    Attributes:
        bayes_auc, bayes_logloss: of the true click probabilities against the labels drawn from
            them: the ceiling and the floor for any model on these rows.
        mean_weight: of its rows; None where all count alike.
    """

    rows: int
    click_rate: float
    bayes_auc: float | None = None
    bayes_logloss: float | None = None
    mean_weight: float | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a weight where there is none: as mlet wrote it before there was this."""
        values: dict[str, Any] = dump(self)
        return {name: v for name, v in values.items() if (name, v) != ("mean_weight", None)}

    @property
    def best(self) -> dict[str, float]:
        """The best scores possible by the names of metrics; empty where they are not known."""
        known = {"auc": self.bayes_auc, "logloss": self.bayes_logloss}
        return {name: value for name, value in known.items() if value is not None}


class DatasetSchema(Settings):
    """Everything a model or a reader needs to know of a prepared data set.

    What mlet 0.1 wrote has neither digests nor checksums: digests are computed when such a data set
    is opened, and its files are taken as they are.

    Attributes:
        format: of the raw rows; None of generated data, and where it is not known.
        checksums: CRC-32 of every file of columns and vocabularies, by its path in the data set.
        extends: the data set whose ids and counts go on here; None of one that begins anew.
        group: what rows are grouped by, to be scored within; None where nothing is named.
        kept: columns that no model sees, by whose values a model may be scored.
    """

    format_version: int = FORMAT_VERSION
    source: str
    format: RawFormat | None = None
    split_by: SplitBy
    seed: int
    dense: list[DenseSchema]
    fields: list[FieldSchema]
    splits: dict[SplitName, SplitSchema]
    checksums: dict[str, int] | None = None
    extends: EarlierRows | None = None
    group: str | None = None
    kept: list[str] = Field(default_factory=list)

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what there is none of: as mlet wrote it before there was this."""
        values: dict[str, Any] = dump(self)
        later: tuple[tuple[str, object], ...] = (
            ("format", None),
            ("extends", None),
            ("group", None),
            ("kept", []),
        )
        return {name: v for name, v in values.items() if (name, v) not in later}

    @property
    def counted_rows(self) -> int:
        """Training rows that counts are of: its own, and those of what it extends."""
        return self.splits["train"].rows + (self.extends.rows if self.extends else 0)

    @property
    def vocabulary_fields(self) -> list[FieldSchema]:
        """Fields that have a vocabulary of their own."""
        return [field for field in self.fields if field.shares is None]

    @property
    def num_categories(self) -> int:
        """Of all vocabularies, each counted once."""
        return sum(field.num_categories for field in self.vocabulary_fields)

    @property
    def weighted(self) -> bool:
        """Whether rows have weights."""
        return self.splits["train"].mean_weight is not None

    @property
    def raw_dense(self) -> list[DenseSchema]:
        """Dense features that raw rows have: all but those that say where one is missing."""
        return [feature for feature in self.dense if feature.of is None]

    @property
    def one_valued(self) -> list[FieldSchema]:
        """Fields with exactly one category a row, in column order."""
        return [field for field in self.fields if not field.multi_valued]

    @property
    def multi_valued(self) -> list[FieldSchema]:
        """Fields with a bag of categories a row."""
        return [field for field in self.fields if field.multi_valued]
