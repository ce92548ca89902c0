"""What every compression method is: settings that build tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Self

from mlet.nn.field_tables import FieldTables
from mlet.settings import Settings


class Compression(Settings, ABC):
    """Settings of a method.

    Attributes:
        takes_inner_dim: whether its tables can be trained as two-layer ones.
    """

    takes_inner_dim: ClassVar[bool] = False

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
            options: ``init``, ``sparse``, ``train_projection`` and ``table_dtype``, as
                `StackedTables` takes them; methods without a stacked table do not use them.
        """
