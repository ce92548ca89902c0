"""What every CTR model is: fields in, logits out, collapsible."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_type_hints

import torch
from pydantic import BeforeValidator, SerializeAsAny, field_validator, model_validator
from pydantic import Field as Setting
from torch import Tensor, nn
from typing_extensions import Self

from mlet import nn as mlet_nn
from mlet.data.loader import Batch
from mlet.data.schema import DatasetSchema, FieldSchema
from mlet.errors import ConfigError
from mlet.models.registry import MODELS
from mlet.nn.compression import AnyCompression, Precision, of_linear_parts
from mlet.nn.field_dims import field_dim
from mlet.nn.init import InitName
from mlet.nn.rare_rows import RareRows
from mlet.settings import Choice
from mlet.task import TASKS, Task

#: Width of a hidden layer.
Width = Annotated[int, Setting(ge=1)]


def _inner_dim(value: Any) -> Any:
    """One error for what is neither, where a union would give one for each."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or value == "auto" or (whole and value >= 1):
        return value
    raise ValueError("expected an integer above 0, auto, or null for ordinary tables")


def _table_bias(value: Any) -> Any:
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError("expected true, false, or auto")


#: k, chosen by field, or none.
InnerDimSetting: TypeAlias = Annotated[int | Literal["auto"] | None, BeforeValidator(_inner_dim)]


#: Whether tables have a bias, or by the model.
TableBiasSetting: TypeAlias = Annotated[bool | Literal["auto"], BeforeValidator(_table_bias)]


class ModelConfig(Choice):
    """Settings that all models share.

    Attributes:
        name: which model it is, of `MODELS`; DLRM where none is given.
        dim: embedding dimension d of every field, or of the widest.
        field_dims: d of single fields by name, at most ``dim``, where it is to differ. Their
            vectors are filled up with zeros, so that to the model all are ``dim`` wide.
        dim_exponent: α; d of the fields that ``field_dims`` does not name falls with their numbers
            of categories n, from ``dim`` of the smallest, by the power −α (see
            `mlet.nn.field_dims`). What it comes to is in ``field_dims`` when training begins.
        inner_dim: inner dimension k of two-layer tables; null trains ordinary ones (SLT); ``auto``
            chooses for each field, before training, and may leave it ordinary (see
            `mlet.nn.inner_dim`).
        inner_dims: k of single fields by name, null for an ordinary table, where it is to differ
            (see ``mlet suggest-k``).
        budget: bytes of float32 parameters that two-layer tables may take in training under
            ``inner_dim: auto``; null is a quarter of the machine's memory.
        init: initialisation of two-layer tables, ``paper`` or ``variance_matched``; or
            ``co_occurrence``: variance-matched, and when training begins the rows of W2 are vectors
            of what categories occur with (without two-layer tables, the rows of ordinary ones).
        pooling: of multi-valued fields.
        task: what its outputs are for, of `mlet.task.TASKS`.
        compression: another way to make tables smaller, by ``name``; see `mlet.nn.compression`.
        train_projection: train the projections of two-layer tables; false leaves them random.
        table_dtype: what tables are kept in while they are trained: ``float32``, or at half the
            memory ``bfloat16`` or ``float16``, computed in float32 and rounded stochastically.
            Collapsed models are float32.
        table_bias: add a trained vector to all rows of a field's table, two-layer or not; it
            collapses with the rest. Not in width-1 tables of linear parts. ``auto`` is true
            beside a two-layer table, in models in which categories act through products alone.
        init_scale: initialise tables' rows this many times larger.
        min_count: categories with fewer training rows have no row of their own: they share some
            with unknown ones, in linear parts too.
        rare_rows: how many they share in each field, by a hash.
        own_rows: of each field, how many of its most frequent categories have rows of their own:
            what ``min_count`` comes to when training begins. Fields that are not named share
            nothing.
    """

    name: str
    dim: int = Setting(16, ge=1)
    field_dims: dict[str, Annotated[int, Setting(ge=1)]] = Setting(default_factory=dict)
    dim_exponent: float = Setting(0.0, ge=0, le=1)
    inner_dim: InnerDimSetting = None
    inner_dims: dict[str, Annotated[int, Setting(ge=1)] | None] = Setting(default_factory=dict)
    budget: int | None = Setting(None, ge=1)
    init: InitName | Literal["co_occurrence"] = "paper"
    pooling: Literal["mean", "sum"] = "mean"
    task: str = "binary"
    compression: AnyCompression | None = None
    train_projection: bool = True
    table_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    table_bias: TableBiasSetting = False
    init_scale: float = Setting(1.0, gt=0)
    min_count: int = Setting(1, ge=1)
    rare_rows: int = Setting(1, ge=1)
    own_rows: dict[str, Annotated[int, Setting(ge=0)]] = Setting(default_factory=dict)

    def products_alone(self) -> bool:
        """Whether categories act through products with one another alone.

        Neither a weight of its own nor its vector by itself then brings a category into the logit;
        its product with the bias of another table does, and that is what a bias is worth. A model
        that has them gains nothing from one (docs/theory.md, "What a rare row may learn").
        """
        return False

    @property
    def biased(self) -> bool:
        """Whether tables have a bias, also where ``table_bias`` is left to the model."""
        if self.table_bias != "auto":
            return self.table_bias
        two_layer = self.inner_dim is not None or any(self.inner_dims.values())
        return two_layer and self.products_alone()

    @model_validator(mode="before")
    @classmethod
    def _precision_is_chosen_when_serving(cls, values: Any) -> Any:
        """What runs of mlet 0.1 without quantization say is left out."""
        if not isinstance(values, Mapping) or "quantize" not in values:
            return values
        if values["quantize"] is not None:
            raise ValueError(
                "quantize is no setting of a model any more: choose the precision when the run is "
                "collapsed, with mlet collapse RUN --precision int8"
            )
        return {key: value for key, value in values.items() if key != "quantize"}

    @model_validator(mode="after")
    def _rows_to_start_from(self) -> Self:
        if self.init == "co_occurrence" and self.compression is not None:
            raise ValueError("init: co_occurrence fills the rows of tables; compressed ones differ")
        return self

    @model_validator(mode="after")
    def _rows_to_share(self) -> Self:
        if self.min_count > 1 and self.compression is not None:
            raise ValueError(
                "min_count: rows of ordinary tables are shared, not of compressed ones"
            )
        return self

    @model_validator(mode="after")
    def _fields_are_no_wider(self) -> Self:
        for name, dim in self.field_dims.items():
            if dim > self.dim:
                raise ValueError(
                    f"field_dims: d = {dim} of field {name!r} is above dim = {self.dim}; lower it, "
                    f"or raise dim"
                )
        return self

    def dims_of(self, schema: DatasetSchema) -> dict[str, int]:
        """d of every table of a data set, by the field that it is of."""
        sizes = {field.name: field.num_categories for field in schema.vocabulary_fields}
        smallest = min(sizes.values(), default=1)
        return {
            name: self.field_dims.get(name) or field_dim(n, smallest, self.dim, self.dim_exponent)
            for name, n in sizes.items()
        }

    @field_validator("task")
    @classmethod
    def _there_is_such_a_task(cls, value: str) -> str:
        TASKS[value]  # raises if there is none
        return value

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> type[Choice]:
        """The settings of the model that is named; a model's own settings are their kind."""
        if cls is not ModelConfig:
            return cls
        return MODELS[str(values.get("name") or "dlrm")].config_type()

    def build_task(self) -> Task:
        """What its outputs are for."""
        return TASKS[self.task]()

    def single_layer(self) -> Self:
        """The same model with float32 tables of one layer: what a collapsed one is."""
        return self.model_copy(
            update={
                "inner_dim": None,
                "inner_dims": {},
                "budget": None,
                "train_projection": True,
                "table_dtype": "float32",
                "table_bias": False,
            }
        )


#: The settings of any model, told apart by ``name``.
AnyModelConfig: TypeAlias = SerializeAsAny[ModelConfig]


def build_model(config: ModelConfig, schema: DatasetSchema) -> CTRModel:
    """A freshly initialised model for a data set (from torch's global random state).

    Raises:
        ConfigError: the model cannot be built for these fields.
    """
    if inspect.isabstract(MODELS[config.name]):
        raise ConfigError(f"model {config.name!r} has no forward")
    if config.inner_dim == "auto":
        raise ConfigError(
            "inner_dim: auto is chosen from training counts, which a schema has not; train with "
            "mlet.training.train, or give mlet.training.with_inner_dims(run).model"
        )
    try:
        model = MODELS[config.name](config, schema)
    except ValueError as error:
        raise ConfigError(f"model {config.name!r}: {error}") from None
    model.task = config.build_task()
    return model


def embed_fields(
    config: ModelConfig, schema: DatasetSchema, *, share: bool = True
) -> mlet_nn.FieldEmbedding:
    """The one embedding layer of a model: all fields of the data set.

    Args:
        config: the model's.
        schema: the data set's.
        share: look fields that share a vocabulary up in one table. A linear part does not: what it
            means that an item is shown, and that it was seen before, are two weights.

    Raises:
        ValueError: ``inner_dims``, ``own_rows`` or ``field_dims`` names a field that there is not,
            or that has no table of its own.
    """
    names = [field.name for field in schema.fields]
    inner_dim = config.inner_dim
    assert inner_dim != "auto"  # build_model has refused it
    for setting in ("inner_dims", "own_rows", "field_dims"):
        given = getattr(config, setting)
        unknown = sorted(set(given) - set(names))
        if unknown:
            listed = ", ".join(names)
            raise ValueError(f"{setting}: no field {unknown[0]!r}; the fields are {listed}")
        for field in schema.fields:
            if field.shares is not None and field.name in given:
                raise ValueError(
                    f"{setting}: field {field.name!r} is looked up in the table of "
                    f"{field.shares!r}; give that one's"
                )
    dims = config.dims_of(schema)
    return mlet_nn.FieldEmbedding(
        [
            mlet_nn.Field(
                name=field.name,
                num_embeddings=field.num_categories,
                dim=dims[field.owner],
                inner_dim=config.inner_dims.get(field.owner, inner_dim),
                multi_valued=field.multi_valued,
                pooling=config.pooling,
                compression=config.compression,
                shares=field.shares if share else None,
                rare=_rare_rows(config, field),
            )
            for field in (*schema.one_valued, *schema.multi_valued)
        ],
        init="variance_matched" if config.init == "co_occurrence" else config.init,
        train_projection=config.train_projection,
        table_dtype=None if config.table_dtype == "float32" else getattr(torch, config.table_dtype),
        table_bias=config.biased,
        init_scale=config.init_scale,
        width=config.dim,
    )


def _rare_rows(config: ModelConfig, field: FieldSchema) -> RareRows | None:
    own = config.own_rows.get(field.owner, field.num_categories)
    # Beside the rows that are shared there are to be fewer than categories.
    shares = own + config.rare_rows < field.num_categories
    return RareRows(own, config.rare_rows) if shares else None


class CTRModel(nn.Module, ABC):
    """A click model: `Batch` to logits (B,).

    Attributes:
        embedding: all categorical fields.
        task: what its outputs are for.
    """

    embedding: mlet_nn.FieldEmbedding
    task: Task = TASKS["binary"]()

    @classmethod
    def config_type(cls) -> type[ModelConfig]:
        """The class of its settings, as its constructor says.

        Raises:
            ConfigError: it does not.
        """
        found = get_type_hints(cls.__init__).get("config")
        if not (isinstance(found, type) and issubclass(found, ModelConfig)):
            raise ConfigError(
                f"model {cls.__name__}: its constructor must take (config, schema), config "
                f"annotated with a subclass of mlet.models.ModelConfig"
            )
        return found

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Logits of the click probability, (B,)."""

    def collapse(self, precision: Precision = "float32") -> Self:
        """A copy as it is served; this model stays as it is.

        Its tables are ordinary ones with the same outputs, or of the precision given; of those of a
        linear part see `of_linear_parts`.
        """
        return self.collapse_around(self.embedding.collapse(precision), precision)

    def collapse_around(self, embedding: nn.Module, precision: Precision = "float32") -> Self:
        """A collapsed copy with something else in the place of `embedding`, the bulk of a model."""
        # Tables are collapsed, not copied and collapsed.
        memo: dict[int, nn.Module] = {
            id(part): part.collapse(of_linear_parts(precision))
            for part in self._embeddings()
            if part is not self.embedding
        }
        return copy.deepcopy(self, {**memo, id(self.embedding): embedding})

    def like_collapsed(self, precision: Precision) -> Self:
        """What `collapse` gives, its tables still to be filled."""
        memo: dict[int, nn.Module] = {
            id(part): part.like_collapsed(
                precision if part is self.embedding else of_linear_parts(precision)
            )
            for part in self._embeddings()
        }
        return copy.deepcopy(self, memo)

    def _embeddings(self) -> list[mlet_nn.FieldEmbedding]:
        """All its field embeddings, that of a linear part too."""
        return [part for part in self.modules() if isinstance(part, mlet_nn.FieldEmbedding)]

    def table_bytes(self) -> int:
        """Bytes of the tables of a collapsed model, as its file keeps them: scales, biases and
        codebooks too, and the weights of categories in a linear part.

        With those of the dense layers they are the bytes of what is served.
        """
        return sum(t.nbytes for part in self._embeddings() for t in part.state_dict().values())
