"""``schema.json`` of a prepared data set: what its columns are and how they came to be."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import SerializerFunctionWrapHandler, model_serializer

from mlet.data.source import DenseScale
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
    """

    name: str
    num_categories: int
    multi_valued: bool
    min_count: int
    total_categories: int
    digest: str | None = None


class _Lean(Settings):
    """Leaves out what is not known when it is written.

    What earlier versions of mlet wrote so stays what it was, and so does its fingerprint.
    """

    @model_serializer(mode="wrap")
    def _without_unknown(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        later = ("missing", "format")
        return {
            key: value for key, value in values.items() if key not in later or value is not None
        }


class DenseSchema(_Lean):
    """One dense feature and the scaling that is already applied to its column.

    Attributes:
        name: as in the raw data.
        scale: `mlet.data.encoding.scaled_dense` says what it does.
        missing: whether a training row lacks it; None where that is not known.
    """

    name: str
    scale: DenseScale
    missing: bool | None = None


class RawFormat(Settings):
    """How raw rows were read, so that more of their kind can be.

    Attributes:
        name: of the reader, as of ``mlet prepare``.
        table: of the reader ``table`` its settings (`mlet.data.readers.TableSchema`).
    """

    name: str
    table: dict[str, Any] | None = None


class SplitSchema(Settings):
    """One split: its rows, its share of clicks and, for synthetic data, the best scores possible.

    Attributes:
        bayes_auc, bayes_logloss: of the true click probabilities against the labels drawn from
            them: the ceiling and the floor for any model on these rows.
    """

    rows: int
    click_rate: float
    bayes_auc: float | None = None
    bayes_logloss: float | None = None

    @property
    def best(self) -> dict[str, float]:
        """The best scores possible by the names of metrics; empty where they are not known."""
        known = {"auc": self.bayes_auc, "logloss": self.bayes_logloss}
        return {name: value for name, value in known.items() if value is not None}


class DatasetSchema(_Lean):
    """Everything a model or a reader needs to know of a prepared data set.

    What mlet 0.1 wrote has neither digests nor checksums: digests are computed when such a data set
    is opened, and its files are taken as they are.

    Attributes:
        format: of the raw rows; None of generated data, and where it is not known.
        checksums: CRC-32 of every file of columns and vocabularies, by its path in the data set.
    """

    format_version: int = FORMAT_VERSION
    source: str
    format: RawFormat | None = None
    split_by: Literal["time", "order", "random", "given"]
    seed: int
    dense: list[DenseSchema]
    fields: list[FieldSchema]
    splits: dict[SplitName, SplitSchema]
    checksums: dict[str, int] | None = None

    @property
    def one_valued(self) -> list[FieldSchema]:
        """Fields with exactly one category a row, in column order."""
        return [field for field in self.fields if not field.multi_valued]

    @property
    def multi_valued(self) -> list[FieldSchema]:
        """Fields with a bag of categories a row."""
        return [field for field in self.fields if field.multi_valued]
