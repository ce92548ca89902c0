"""The YAML schema of a table: which column is what, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from mlet.data.schema import SPLITS
from mlet.data.sharing import check_shares
from mlet.data.source import LINE, DenseScale
from mlet.data.times import check_format
from mlet.errors import ConfigError
from mlet.settings import Settings

#: Settings that a data set's schema names only where they are given.
_LATER = ("weight", "shares", "group", "keep")


class SplitColumn(Settings):
    """A column that says of every row which split it is in.

    Attributes:
        column: its name.
        train, valid, test: its values, without regard to case.
    """

    column: str
    train: list[int | str] = Field(default=[0, "train"], min_length=1)
    valid: list[int | str] = Field(default=[1, "valid", "validation"], min_length=1)
    test: list[int | str] = Field(default=[2, "test"], min_length=1)

    @model_validator(mode="after")
    def _one_split_a_value(self) -> Self:
        for value in self.places():
            if sum(value in self._texts(split) for split in SPLITS) > 1:
                raise ValueError(f"{value!r} is listed for two splits")
        return self

    def places(self) -> dict[str, int]:
        """The place of a split among the three, by value."""
        return {text: place for place, split in enumerate(SPLITS) for text in self._texts(split)}

    def _texts(self, split: str) -> list[str]:
        return [str(value).strip().lower() for value in getattr(self, split)]


class DenseColumn(Settings):
    """How a dense column becomes a feature.

    Attributes:
        scale: see `mlet.data.source.DenseScale`.
        missing_indicator: whether a feature of its own says where it is missing.
    """

    scale: DenseScale = "log"
    missing_indicator: bool = False


class TableSchema(Settings):
    """Which column is what. Columns not named are left out.

    Attributes:
        label: column of 0 and 1, or of true and false, yes and no; or of anything with one of
        positive: the values that are clicks; all others are none.
        threshold: the number from which on a label is a click.
        dense: numeric columns; a list (all log-scaled, as DLRM does) or name → how it is scaled, a
            scale or a `DenseColumn`.
        categorical: columns with one category a row.
        multi_valued: columns with a bag of categories: name → the separator between them in a
            cell (ignored for lists of Parquet and JSON).
        shares: fields that have the same categories as others, as the last item that a user saw and
            the item that is shown: name → that other field, whose vocabulary and embedding table
            they share.
        time: column to split by: integers, or dates in ISO form.
        time_format: of the time, where it is another: ``seconds``, ``milliseconds``,
            ``microseconds`` or ``nanoseconds`` since 1970, ``iso``, ``integers`` of no unit, or a
            pattern, as ``%d/%m/%Y %H:%M``.
        split: the column of rows that are split already; see `SplitColumn`.
        weight: the column of what rows count for, beside others: numbers from 0 on.
        group: the column of whose rows belong together, as of a user, a query or a session, to be
            scored within (GAUC); it may be a feature, too.
        keep: columns that no model sees, by whose values a model may be scored, whatever else they
            are.
        null_values: what stands for a missing value, in any column, beside an empty cell.
        separator: between the columns of a CSV file; by default a comma, and in one named .tsv a
            tab.
        quote: ``double``, where cells of a CSV file may be enclosed in double quotes (RFC 4180), or
            ``none``, where quotes are characters like others, as in many logs.
    """

    label: str
    positive: list[bool | int | float | str] | None = Field(default=None, min_length=1)
    threshold: float | None = None
    dense: dict[str, DenseColumn] = Field(default_factory=dict)
    categorical: list[str] = Field(default_factory=list)
    multi_valued: dict[str, str] = Field(default_factory=dict)
    shares: dict[str, str] = Field(default_factory=dict)
    time: str | None = None
    time_format: str | None = None
    split: SplitColumn | None = None
    weight: str | None = None
    group: str | None = None
    keep: list[str] = Field(default_factory=list)
    null_values: list[int | float | str] = Field(default_factory=list)
    separator: str | None = None
    quote: Literal["double", "none"] = "double"

    @field_validator("dense", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Columns, and scales, that are named alone."""
        if isinstance(value, list):
            if len(set(map(str, value))) < len(value):
                raise ValueError("a column is named twice")
            return {str(name): {} for name in value}
        if isinstance(value, dict):
            return {k: {"scale": v} if isinstance(v, str) else v for k, v in value.items()}
        return value

    @model_validator(mode="after")
    def _one_rule_for_labels(self) -> Self:
        if self.positive is not None and self.threshold is not None:
            raise ValueError("give 'positive' or 'threshold', not both")
        if self.time_format is not None and self.time is None:
            raise ValueError("'time_format' is of the column 'time', which is not given")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what mlet had not at first, where it is not given."""
        values: dict[str, Any] = dump(self)
        return {name: v for name, v in values.items() if v or name not in _LATER}

    def names(self) -> list[str]:
        """Every column the schema refers to."""
        group = [self.group] if self.group else []
        return [*self._roles(), *group, *self.keep]

    def _roles(self) -> list[str]:
        """The columns that have one part each."""
        time = [self.time] if self.time else []
        split = [self.split.column] if self.split else []
        weight = [self.weight] if self.weight else []
        return [self.label, *self.features(), *time, *split, *weight]

    def features(self) -> list[str]:
        """Those that a model takes."""
        return [*self.dense, *self.categorical, *self.multi_valued]

    def separator_of(self, path: Path) -> str:
        """What is between the columns of a CSV file."""
        by_name = "\t" if ".tsv" in path.suffixes else ","
        return by_name if self.separator is None else self.separator

    def check(self) -> None:
        """Refuse what no table can have.

        Raises:
            ConfigError: a column has two roles, none is categorical, a vocabulary cannot be shared,
                or the separator or the form of the time is none.
        """
        # A time may be a feature, too.
        roles = [name for name in self._roles() if name != self.time]
        repeated = sorted({name for name in roles if roles.count(name) > 1})
        if repeated:
            raise ConfigError(f"schema: column {repeated[0]!r} is given two roles")
        if not self.categorical and not self.multi_valued:
            raise ConfigError("schema: name at least one categorical or multi_valued column")
        if self.group in self.multi_valued:
            raise ConfigError(
                f"schema: 'group' must have one value a row, and {self.group!r} is multi_valued"
            )
        for name in self.keep:
            if name in (*self.categorical, *self.multi_valued) or self.keep.count(name) > 1:
                raise ConfigError(
                    f"schema: 'keep' names {name!r}, by which models are scored anyway; name "
                    f"it once"
                )
        check_shares(self.shares, (*self.categorical, *self.multi_valued))
        separator = self.separator_of(Path())
        if len(separator.encode()) != 1 or separator in '"\r\n':
            raise ConfigError(
                f"schema: 'separator' must be one ASCII character, and neither a quote nor an end "
                f"of line; got {separator!r}"
            )
        if LINE in self.names():
            raise ConfigError(
                f"schema: {LINE!r} is a name that mlet uses itself; rename the column"
            )
        if self.time_format is not None:
            check_format(self.time_format)
