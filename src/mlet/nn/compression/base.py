"""What every compression method is: settings that build tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from pydantic import SerializeAsAny
from typing_extensions import Self

from mlet.nn.field_tables import FieldTables
from mlet.registry import Registry
from mlet.settings import Choice

#: The settings of every method, by its name.
COMPRESSIONS: Registry[type[Compression]] = Registry(
    "compression", "mlet.compression", has="of_field"
)


class Compression(Choice):
    """Settings of a method.

    Attributes:
        name: which method it is, of `COMPRESSIONS`.
        takes_inner_dim: whether its tables can be trained as two-layer ones.
    """

    name: str

    takes_inner_dim: ClassVar[bool] = False

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> type[Choice]:
        """The settings of the method that is named; a method's own settings are their kind."""
        return cls if cls is not Compression else COMPRESSIONS[str(values.get("name"))]

    def of_field(self, num_embeddings: int, smallest: int, dim: int) -> Self | Compression | None:
        """What the method makes of one field; None for an ordinary table.

        Args:
            num_embeddings: the field's n.
            smallest: n of the smallest field.
            dim: d.
        """
        return self

    @abstractmethod
    def build(
        self, sizes: Mapping[str, int], dim: int, inner_dim: int | None, **options: Any
    ) -> FieldTables:
        """Tables for T fields.

        Args:
            sizes: n of each field, by name.
            dim: d.
            inner_dim: k, where `takes_inner_dim`; else None.
            options: ``init``, ``sparse``, ``train_projection``, ``table_dtype`` and ``init_scale``,
                as `StackedTables` takes them; methods without a stacked table do not use them.
        """


#: The settings of any method, told apart by ``name``.
AnyCompression: TypeAlias = SerializeAsAny[Compression]
