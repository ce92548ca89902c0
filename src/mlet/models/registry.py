"""The models by name: mlet's own, and those of other packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlet.registry import Registry

if TYPE_CHECKING:
    from mlet.models.base import CTRModel

#: Every model class, called with its settings and a data set's schema.
MODELS: Registry[type[CTRModel]] = Registry("model", "mlet.models", has="config_type")
