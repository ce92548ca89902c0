"""Small models of every kind, with each of their options."""

from __future__ import annotations

from mlet.models import (
    AnyModelConfig,
    AutoIntConfig,
    DCNConfig,
    DCNv2Config,
    DeepFMConfig,
    DLRMConfig,
    FiBiNETConfig,
    FinalMLPConfig,
    FMConfig,
    GDCNConfig,
    LogisticRegressionConfig,
    MaskNetConfig,
    NFMConfig,
    PNNConfig,
    WideDeepConfig,
    XDeepFMConfig,
)

SIZE = {"dim": 3, "inner_dim": 9}
BY_FIELD = {"field_dims": {"C1": 1, "C3": 2}}
CONFIGS: dict[str, AnyModelConfig] = {
    "dlrm": DLRMConfig(**SIZE, bottom_mlp=[5], top_mlp=[6]),
    "fm": FMConfig(**SIZE),
    "deepfm": DeepFMConfig(**SIZE, mlp=[6, 5]),
    "deepfm, two-layer": DeepFMConfig(**SIZE, mlp=[6, 5], two_layer_first_order=True),
    "wide_deep": WideDeepConfig(**SIZE, mlp=[6, 5]),
    "dcnv2": DCNv2Config(**SIZE, cross_layers=3, mlp=[6, 5]),
    "dcn": DCNConfig(**SIZE, cross_layers=3, mlp=[6, 5]),
    "nfm": NFMConfig(**SIZE, mlp=[6, 5]),
    "pnn, inner": PNNConfig(**SIZE, mlp=[6, 5]),
    "pnn, outer": PNNConfig(**SIZE, mlp=[6, 5], product="outer"),
    "autoint": AutoIntConfig(**SIZE, layers=2, heads=2, head_dim=4),
    "xdeepfm": XDeepFMConfig(**SIZE, maps=[4, 5], mlp=[6, 5]),
    "dcnv2, parallel": DCNv2Config(**SIZE, mlp=[6], structure="parallel"),
    "dcnv2, mixture": DCNv2Config(**SIZE, cross_layers=2, mlp=[6, 5], experts=3, rank=4),
    "lr": LogisticRegressionConfig(inner_dim=9),
    "fibinet, all": FiBiNETConfig(**SIZE, mlp=[6, 5]),
    "fibinet, each": FiBiNETConfig(**SIZE, mlp=[6, 5], bilinear="each"),
    "fibinet, interaction": FiBiNETConfig(**SIZE, mlp=[6, 5], bilinear="interaction"),
    "masknet, parallel": MaskNetConfig(**SIZE, blocks=2, width=5, mlp=[6]),
    "masknet, serial": MaskNetConfig(**SIZE, blocks=3, width=5, structure="serial"),
    "finalmlp": FinalMLPConfig(**SIZE, mlp1=[6, 4], mlp2=[8], gate_mlp=[5]),
    "finalmlp, gates": FinalMLPConfig(
        **SIZE, mlp1=[6, 4], mlp2=[8], gate_mlp=[5], gate1=["C1"], gate2=["C3", "C2"], heads=4
    ),
    "gdcn": GDCNConfig(**SIZE, cross_layers=2, mlp=[6, 5]),
    "dlrm, by field": DLRMConfig(**SIZE, **BY_FIELD, bottom_mlp=[5], top_mlp=[6]),
    "deepfm, by field": DeepFMConfig(**SIZE, **BY_FIELD, mlp=[6, 5]),
    "masknet, by field": MaskNetConfig(**SIZE, **BY_FIELD, blocks=2, width=5, mlp=[6]),
    "gdcn, stacked": GDCNConfig(**SIZE, cross_layers=2, mlp=[6, 5], structure="stacked"),
}
