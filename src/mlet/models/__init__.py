"""CTR models, one file each, all built on one field-embedding layer."""

from __future__ import annotations

from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError
from mlet.models.base import CTRModel
from mlet.models.dlrm import DLRM, DLRMConfig

__all__ = ["DLRM", "MODELS", "AnyModelConfig", "CTRModel", "DLRMConfig", "build_model"]

#: The configuration of any model; grows into a union told apart by ``name``.
AnyModelConfig = DLRMConfig

MODELS = {"dlrm": DLRM}


def build_model(config: AnyModelConfig, schema: DatasetSchema) -> CTRModel:
    """A freshly initialised model for a data set (from torch's global random state).

    Raises:
        ConfigError: the model cannot be built for these fields.
    """
    try:
        return MODELS[config.name](config, schema)
    except ValueError as error:
        raise ConfigError(f"model {config.name!r}: {error}") from None
