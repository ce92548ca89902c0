"""CTR models, one file each, all built on one field-embedding layer."""

from mlet.models.autoint import AutoInt, AutoIntConfig
from mlet.models.base import (
    AnyModelConfig,
    CTRModel,
    ModelConfig,
    build_model,
    embed_fields,
)
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
from mlet.models.registry import MODELS
from mlet.models.wide_deep import WideDeep, WideDeepConfig
from mlet.models.xdeepfm import XDeepFM, XDeepFMConfig

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
    "embed_fields",
]
