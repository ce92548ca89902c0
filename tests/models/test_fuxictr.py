"""Our weights in FuxiCTR's layers give our logits: an outside opinion on every shared model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlet.data import Batch
from mlet.data.schema import DatasetSchema, FieldSchema, SplitSchema
from mlet.models import (
    AnyModelConfig,
    AutoIntConfig,
    CTRModel,
    DCNConfig,
    DCNv2Config,
    DeepFMConfig,
    DLRMConfig,
    FiBiNETConfig,
    FinalMLPConfig,
    FMConfig,
    LogisticRegressionConfig,
    NFMConfig,
    PNNConfig,
    WideDeepConfig,
    XDeepFMConfig,
    build_model,
)
from mlet.nn import FieldEmbedding

pytest.importorskip("fuxictr", reason="the extra 'clients' is not installed")
from fuxictr.features import FeatureMap
from fuxictr.pytorch import layers
from model_zoo.LongCTR.FinalMLP.FinalMLP import FeatureSelection, InteractionAggregation

SIZES = {"a": 7, "b": 5, "c": 9}
D, ROWS = 4, 6
SIZE = {"dim": D, "inner_dim": 12}


@pytest.fixture(scope="module")
def feature_map(tmp_path_factory: pytest.TempPathFactory) -> FeatureMap:
    result = FeatureMap("peer", str(tmp_path_factory.mktemp("fuxictr")))
    result.features = OrderedDict(
        (name, {"type": "categorical", "source": "", "vocab_size": size})
        for name, size in SIZES.items()
    )
    result.labels, result.num_fields = ["label"], len(SIZES)
    result.default_emb_dim, result.total_features = D, sum(SIZES.values())
    result.set_column_index()
    return result


def schema() -> DatasetSchema:
    split = SplitSchema(rows=1, click_rate=0.5)
    return DatasetSchema(
        source="peer", split_by="given", seed=0, dense=[],
        fields=[
            FieldSchema(
                name=name, num_categories=size, multi_valued=False, min_count=1,
                total_categories=size,
            )
            for name, size in SIZES.items()
        ],
        splits={"train": split, "valid": split, "test": split},
    )  # fmt: skip


class Peer(nn.Module):
    """What a model of FuxiCTR's consists of, made of its layers with our weights."""

    def __init__(self, ours: CTRModel, feature_map: FeatureMap) -> None:
        super().__init__()
        self.embedding = layers.FeatureEmbedding(feature_map, D)
        load_tables(self.embedding, ours.embedding, D)
        if hasattr(ours, "first_order"):
            self.linear = layers.LogisticRegression(feature_map, use_bias=True)
            load_tables(self.linear.embedding_layer, ours.first_order.tables, 1)
            self.linear.bias.data.fill_(float(ours.first_order.bias))
        self.feature_map = feature_map


def load_tables(theirs: nn.Module, ours: FieldEmbedding, dim: int) -> None:
    for name in SIZES:
        (weight,) = [
            parameter
            for key, parameter in theirs.named_parameters()
            if f".{name}." in key and parameter.shape == (SIZES[name], dim)
        ]
        weight.data.copy_(ours.table(name))


def mlp(ours: nn.Sequential) -> nn.Module:
    """FuxiCTR's MLP with our weights; a last layer without activation becomes its output layer."""
    linears = [layer for layer in ours if isinstance(layer, nn.Linear)]
    ends_linear = isinstance(ours[-1], nn.Linear)
    hidden = [layer.out_features for layer in (linears[:-1] if ends_linear else linears)]
    block = layers.MLP_Block(
        input_dim=linears[0].in_features,
        hidden_units=hidden,
        output_dim=linears[-1].out_features if ends_linear else None,
    )
    theirs = [layer for layer in block.mlp if isinstance(layer, nn.Linear)]
    for mine, other in zip(linears, theirs, strict=True):
        other.load_state_dict(mine.state_dict())
    return block


Logits = Callable[[Any, Peer, dict[str, Tensor]], Tensor]


def lr(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    linear = layers.LogisticRegression(peer.feature_map, use_bias=True)
    load_tables(linear.embedding_layer, ours.embedding, 1)
    linear.bias.data.fill_(float(ours.bias))
    return linear(x)


def fm(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    interaction = layers.InnerProductInteraction(len(SIZES), output="product_sum")
    return peer.linear(x) + interaction(peer.embedding(x))


def deepfm(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    return fm(ours, peer, x) + mlp(ours.mlp)(peer.embedding(x).flatten(1))


def wide_deep(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    return peer.linear(x) + mlp(ours.mlp)(peer.embedding(x).flatten(1))


def nfm(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    pooling = layers.InnerProductInteraction(len(SIZES), output="bi_interaction")
    return peer.linear(x) + mlp(ours.mlp)(pooling(peer.embedding(x)))


def pnn(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    products = layers.InnerProductInteraction(len(SIZES), output="inner_product")
    vectors = peer.embedding(x)
    return mlp(ours.mlp)(torch.cat([vectors.flatten(1), products(vectors)], dim=1))


def dcn(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    features = peer.embedding(x).flatten(1)
    cross = layers.CrossNet(features.shape[1], len(ours.cross.weights))
    for layer, weight, bias in zip(
        cross.cross_net, ours.cross.weights, ours.cross.biases, strict=True
    ):
        layer.weight.weight.data.copy_(weight.unsqueeze(0))
        layer.bias.data.copy_(bias)
    return ours.head(torch.cat([cross(features), mlp(ours.mlp)(features)], dim=1))


def dcnv2(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    features = peer.embedding(x).flatten(1)
    cross = layers.CrossNetV2(features.shape[1], len(ours.cross.layers))
    for layer, mine in zip(cross.cross_layers, ours.cross.layers, strict=True):
        layer.load_state_dict(mine.state_dict())
    return ours.head(torch.cat([cross(features), mlp(ours.mlp)(features)], dim=1))


def dcnv2_mixture(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    """One layer: FuxiCTR shares the gates of all layers, the paper does not."""
    features = peer.embedding(x).flatten(1)
    mine = ours.cross
    experts, rank = mine.u.shape[1], mine.u.shape[3]
    cross = layers.CrossNetMix(features.shape[1], layer_num=1, low_rank=rank, num_experts=experts)
    cross.U_list[0].data.copy_(mine.u[0])
    cross.V_list[0].data.copy_(mine.v[0])
    cross.C_list[0].data.copy_(mine.c[0])
    cross.bias[0].data.copy_(mine.bias[0].unsqueeze(1))
    for gate, weight in zip(cross.gating, mine.gates[0].weight, strict=True):
        gate.weight.data.copy_(weight.unsqueeze(0))
    return ours.head(mlp(ours.mlp)(cross(features)))


def dlrm(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    products = layers.InnerProductInteraction(len(SIZES), output="inner_product")
    return mlp(ours.top_mlp)(products(peer.embedding(x)))


def autoint(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    attention, vectors = layers.ScaledDotProductAttention(), peer.embedding(x)
    for layer in ours.layers:
        heads = [
            attention(*(vectors @ weight for weight in weights))[0]
            for weights in zip(
                *(w.chunk(layer.heads, dim=1) for w in (layer.query, layer.key, layer.value)),
                strict=True,
            )
        ]
        vectors = torch.relu(torch.cat(heads, dim=2) + vectors @ layer.residual)
    return ours.head(vectors.flatten(1))


def finalmlp(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    features = peer.embedding(x).flatten(1)
    width, hidden = features.shape[1], [ours.gate1.mlp[0].out_features]
    gates = FeatureSelection(peer.feature_map, width, D, hidden, [], [])
    for bias, gate, mine in (
        (gates.fs1_ctx_bias, gates.fs1_gate, ours.gate1),
        (gates.fs2_ctx_bias, gates.fs2_gate, ours.gate2),
    ):
        bias.data.copy_(mine.context)
        gate.mlp.load_state_dict(mine.mlp.state_dict())
    one, two = ours.mlp1[-2].out_features, ours.mlp2[-2].out_features
    fusion = InteractionAggregation(one, two, num_heads=ours.fusion.heads)
    fusion.w_x.load_state_dict(ours.fusion.first.state_dict())
    fusion.w_y.weight.data.copy_(ours.fusion.second.weight)
    fusion.w_y.bias.data.zero_()
    fusion.w_xy.data.copy_(ours.fusion.weights.reshape(-1, 1))
    first, second = gates(x, features)
    return fusion(mlp(ours.mlp1)(first), mlp(ours.mlp2)(second))


def xdeepfm(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    vectors = peer.embedding(x)
    maps = [len(weight) for weight in ours.cin.weights]
    cin = layers.CompressedInteractionNet(len(SIZES), maps, output_dim=1)
    cin.fc.weight.data.copy_(ours.cin_head.weight)
    cin.fc.bias.data.zero_()
    for place, weight in enumerate(ours.cin.weights):
        convolution = cin.cin_layer[f"layer_{place + 1}"]
        # Theirs counts X⁰ first, ours the layer before.
        convolution.weight.data.copy_(weight.transpose(1, 2).flatten(1).unsqueeze(2))
        convolution.bias.data.zero_()
    return peer.linear(x) + cin(vectors) + mlp(ours.mlp)(vectors.flatten(1))


def fibinet(ours: Any, peer: Peer, x: dict[str, Tensor]) -> Tensor:
    vectors = peer.embedding(x)
    senet = layers.SqueezeExcitation(len(SIZES), reduction_ratio=3)
    senet.excitation[0].weight.data.copy_(ours.senet.narrow.weight)
    senet.excitation[2].weight.data.copy_(ours.senet.wide.weight)
    kinds = {"all": "field_all", "each": "field_each", "interaction": "field_interaction"}
    products = []
    for mine, given in ((ours.bilinear, vectors), (ours.senet_bilinear, senet(vectors))):
        kind = mine.kind
        theirs = layers.BilinearInteraction(len(SIZES), D, kinds[kind])
        weights = mine.weights
        if kind == "all":
            weights = weights[0]
        if kind == "each":  # theirs has one for the last field, too, and never uses it
            weights = torch.cat([weights, torch.zeros(1, D, D)])
        theirs.bilinear_W.data.copy_(weights)
        products.append(theirs(given).flatten(1))
    return peer.linear(x) + mlp(ours.mlp)(torch.cat(products, dim=1))


CASES: dict[str, tuple[AnyModelConfig, Logits]] = {
    "lr": (LogisticRegressionConfig(inner_dim=12), lr),
    "fm": (FMConfig(**SIZE), fm),
    "deepfm": (DeepFMConfig(**SIZE, mlp=[6, 5]), deepfm),
    "wide_deep": (WideDeepConfig(**SIZE, mlp=[6, 5]), wide_deep),
    "nfm": (NFMConfig(**SIZE, mlp=[6]), nfm),
    "pnn": (PNNConfig(**SIZE, mlp=[6, 5]), pnn),
    "dcn": (DCNConfig(**SIZE, cross_layers=3, mlp=[6]), dcn),
    "dcnv2": (DCNv2Config(**SIZE, cross_layers=3, mlp=[6], structure="parallel"), dcnv2),
    "dcnv2, mixture": (
        DCNv2Config(**SIZE, cross_layers=1, mlp=[6], experts=3, rank=2),
        dcnv2_mixture,
    ),
    "dlrm": (DLRMConfig(**SIZE, top_mlp=[6]), dlrm),
    "autoint": (AutoIntConfig(**SIZE, layers=2, heads=2, head_dim=4), autoint),
    "finalmlp": (FinalMLPConfig(**SIZE, mlp1=[6, 4], mlp2=[8], gate_mlp=[5], heads=2), finalmlp),
    "xdeepfm": (XDeepFMConfig(**SIZE, maps=[4, 5], mlp=[6]), xdeepfm),
    "fibinet, all": (FiBiNETConfig(**SIZE, mlp=[6]), fibinet),
    "fibinet, each": (FiBiNETConfig(**SIZE, mlp=[6], bilinear="each"), fibinet),
    "fibinet, interaction": (FiBiNETConfig(**SIZE, mlp=[6], bilinear="interaction"), fibinet),
}


@pytest.mark.parametrize("kind", CASES)
def test_our_weights_in_fuxictrs_layers_give_our_logits(kind: str, feature_map: FeatureMap) -> None:
    config, logits = CASES[kind]
    torch.manual_seed(0)
    ours = build_model(config, schema())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.startswith(("first_order", "bias")) or name.endswith(("bias", "context")):
                parameter.normal_()
            if name.startswith("cross."):
                parameter.normal_(std=0.5)
    ids = torch.stack([torch.randint(size, (ROWS,)) for size in SIZES.values()], 1)
    batch = Batch(torch.zeros(ROWS), torch.empty(ROWS, 0), ids, {})
    x = dict(zip(SIZES, ids.unbind(1), strict=True))
    with torch.no_grad():
        peer = Peer(ours, feature_map) if config.name != "lr" else _WithoutEmbedding(feature_map)
        theirs = logits(ours, peer, x).squeeze(1)
        torch.testing.assert_close(theirs, ours(batch), rtol=1e-4, atol=1e-5)
    assert theirs.std() > 1e-3, "rows differ, or the comparison says nothing"


class _WithoutEmbedding(Peer):
    def __init__(self, feature_map: FeatureMap) -> None:
        nn.Module.__init__(self)
        self.feature_map = feature_map
