"""CTR models, one file each, all built on one field-embedding layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag

from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError
from mlet.models.autoint import AutoInt, AutoIntConfig
from mlet.models.base import CTRModel, ModelConfig
from mlet.models.dcn import DCN, DCNConfig
from mlet.models.dcnv2 import DCNv2, DCNv2Config
from mlet.models.deepfm import DeepFM, DeepFMConfig
from mlet.models.dlrm import DLRM, DLRMConfig
from mlet.models.fibinet import FiBiNET, FiBiNETConfig
from mlet.models.finalmlp import FinalMLP, FinalMLPConfig
from mlet.models.fm import FM, FMConfig
from mlet.models.gdcn import GDCN, GDCNConfig
from mlet.models.logistic_regression import LogisticRegression, LogisticRegressionConfig
from mlet.models.masknet import MaskNet, MaskNetConfig
from mlet.models.nfm import NFM, NFMConfig
from mlet.models.pnn import PNN, PNNConfig
from mlet.models.wide_deep import WideDeep, WideDeepConfig
from mlet.models.xdeepfm import XDeepFM, XDeepFMConfig
from mlet.settings import Settings

__all__ = [
    "DCN",
    "DLRM",
    "FM",
    "GDCN",
    "MODELS",
    "NFM",
    "PNN",
    "AnyModelConfig",
    "AutoInt",
    "AutoIntConfig",
    "CTRModel",
    "DCNConfig",
    "DCNv2",
    "DCNv2Config",
    "DLRMConfig",
    "DeepFM",
    "DeepFMConfig",
    "FMConfig",
    "FiBiNET",
    "FiBiNETConfig",
    "FinalMLP",
    "FinalMLPConfig",
    "GDCNConfig",
    "LogisticRegression",
    "LogisticRegressionConfig",
    "MaskNet",
    "MaskNetConfig",
    "ModelConfig",
    "NFMConfig",
    "PNNConfig",
    "WideDeep",
    "WideDeepConfig",
    "XDeepFM",
    "XDeepFMConfig",
    "build_model",
    "parse_model_config",
]

MODELS: dict[str, type[CTRModel]] = {
    "dlrm": DLRM,
    "fm": FM,
    "deepfm": DeepFM,
    "wide_deep": WideDeep,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "nfm": NFM,
    "pnn": PNN,
    "autoint": AutoInt,
    "xdeepfm": XDeepFM,
    "lr": LogisticRegression,
    "fibinet": FiBiNET,
    "masknet": MaskNet,
    "finalmlp": FinalMLP,
    "gdcn": GDCN,
}


def _name(value: Any) -> str:
    """The model's name, by which its settings are told apart; DLRM where none is given."""
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    return "dlrm" if name is None else str(name)


#: The configuration of any model, told apart by ``name``.
AnyModelConfig: TypeAlias = Annotated[
    Annotated[DLRMConfig, Tag("dlrm")]
    | Annotated[FMConfig, Tag("fm")]
    | Annotated[DeepFMConfig, Tag("deepfm")]
    | Annotated[WideDeepConfig, Tag("wide_deep")]
    | Annotated[DCNConfig, Tag("dcn")]
    | Annotated[DCNv2Config, Tag("dcnv2")]
    | Annotated[NFMConfig, Tag("nfm")]
    | Annotated[PNNConfig, Tag("pnn")]
    | Annotated[AutoIntConfig, Tag("autoint")]
    | Annotated[XDeepFMConfig, Tag("xdeepfm")]
    | Annotated[LogisticRegressionConfig, Tag("lr")]
    | Annotated[FiBiNETConfig, Tag("fibinet")]
    | Annotated[MaskNetConfig, Tag("masknet")]
    | Annotated[FinalMLPConfig, Tag("finalmlp")]
    | Annotated[GDCNConfig, Tag("gdcn")],
    Discriminator(_name),
]


class _Holder(Settings):
    model: AnyModelConfig


def parse_model_config(values: Mapping[str, Any], origin: str) -> AnyModelConfig:
    """A model's settings from plain values; ``origin`` says where they come from, for the error.

    Raises:
        ConfigError: no such model, or a setting is unknown or out of its range.
    """
    return _Holder.parse({"model": dict(values)}, origin).model


def build_model(config: AnyModelConfig, schema: DatasetSchema) -> CTRModel:
    """A freshly initialised model for a data set (from torch's global random state).

    Raises:
        ConfigError: the model cannot be built for these fields.
    """
    try:
        return MODELS[config.name](config, schema)
    except ValueError as error:
        raise ConfigError(f"model {config.name!r}: {error}") from None
