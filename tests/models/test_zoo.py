"""All models: their definitions row by row in float64, sizes, and what each must be able to do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import CONFIGS

from mlet.data import Batch, BatchLoader, PreparedDataset
from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError
from mlet.export import load_collapsed
from mlet.models import (
    MODELS,
    AnyModelConfig,
    CTRModel,
    DCNv2Config,
    DLRMConfig,
    FiBiNETConfig,
    FinalMLPConfig,
    FMConfig,
    GDCNConfig,
    MaskNetConfig,
    ModelConfig,
    PNNConfig,
    build_model,
)
from mlet.models.first_order import FirstOrderConfig
from mlet.models.fm import pairwise_sum
from mlet.models.nfm import bi_interaction
from mlet.nn import Bags
from mlet.training import RunConfig, RunDirectory, train
from mlet.training.config import OptimizersConfig, TrainingConfig
from mlet.training.load import load_trained
from mlet.training.optimizers import Optimizers
from mlet.training.predict import predict

each_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(scope="module")
def schema(small_data: Path) -> DatasetSchema:
    """The synthetic fields, the last of them multi-valued."""
    schema = PreparedDataset(small_data).schema
    *others, last = schema.fields
    bag = last.model_copy(update={"multi_valued": True})
    return schema.model_copy(update={"fields": [*others, bag]})


def build(config: AnyModelConfig, schema: DatasetSchema) -> CTRModel:
    """In float64, with first-order weights that are not zero."""
    torch.manual_seed(0)
    model = build_model(config, schema).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("first_order") or name.endswith("bias"):
                parameter.normal_()
    return model


def batch(schema: DatasetSchema, rows: int = 4) -> Batch:
    torch.manual_seed(3)
    sizes = [field.num_categories for field in schema.one_valued]
    return Batch(
        labels={"label": torch.randint(2, (rows,)).double()},
        dense=torch.rand(rows, len(schema.dense), dtype=torch.float64),
        ids=torch.stack([torch.randint(size, (rows,)) for size in sizes], 1),
        bags={"C3": Bags(torch.randint(7, (2 * rows,)), torch.arange(0, 2 * rows + 1, 2))},
    )


def mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Affine maps with ReLU where the module has one, written out."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = torch.stack([w @ x + b for w, b in zip(layer.weight, layer.bias, strict=True)])
        else:
            x = torch.where(x > 0, x, 0.0)
    return x


def linear(model: CTRModel, rows: Batch, row: int) -> Tensor:
    part = model.first_order
    total = part.bias + sum(w * x for w, x in zip(part.dense, rows.dense[row], strict=True))
    for column, name in enumerate(("C1", "C2")):
        total = total + part.tables.table(name)[rows.ids[row, column], 0]
    values, offsets = rows.bags["C3"]
    bag = values[offsets[row] : offsets[row + 1]]
    return total + part.tables.table("C3")[bag, 0].mean()


def pairs(vectors: Tensor) -> Tensor:
    return sum(a @ b for a, b in combinations(vectors, 2))


def fm(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    return linear(model, rows, row) + pairs(vectors)


def deepfm(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    x = torch.cat([*vectors, rows.dense[row]])
    return linear(model, rows, row) + pairs(vectors) + mlp(model.mlp, x)[0]


def wide_deep(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    x = torch.cat([*vectors, rows.dense[row]])
    return linear(model, rows, row) + mlp(model.mlp, x)[0]


def experts(cross: nn.Module, x0: Tensor) -> Tensor:
    x = x0
    for layer, gate in enumerate(cross.gates):
        scores = torch.stack([w @ x for w in gate.weight]).exp()
        total = torch.zeros_like(x)
        for i, (u, c, v) in enumerate(
            zip(cross.u[layer], cross.c[layer], cross.v[layer], strict=True)
        ):
            expert = x0 * (u @ torch.tanh(c @ torch.tanh(v.T @ x)) + cross.bias[layer])
            total = total + scores[i] / scores.sum() * expert
        x = total + x
    return x


def dcnv2(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    x0 = torch.cat([*vectors, rows.dense[row]])
    x = x0
    if hasattr(model.cross, "gates"):
        x = experts(model.cross, x0)
    for layer in getattr(model.cross, "layers", []):
        mixed = [w @ x + b for w, b in zip(layer.weight, layer.bias, strict=True)]
        x = torch.stack([x0[i] * mixed[i] + x[i] for i in range(len(x0))])
    stacked = model.structure == "stacked"
    features = mlp(model.mlp, x) if stacked else torch.cat([x, mlp(model.mlp, x0)])
    return model.head.weight[0] @ features + model.head.bias[0]


def dcn(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    x0 = torch.cat([*vectors, rows.dense[row]])
    x = x0
    for weight, bias in zip(model.cross.weights, model.cross.biases, strict=True):
        x = torch.outer(x0, x) @ weight + bias + x  # equation 3 as it stands
    features = torch.cat([x, mlp(model.mlp, x0)])
    return model.head.weight[0] @ features + model.head.bias[0]


def nfm(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    pooled = sum(a * b for a, b in combinations(vectors, 2))
    return linear(model, rows, row) + mlp(model.mlp, pooled)[0]


def pnn(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    if model.product == "inner":
        products = torch.stack([a @ b for a, b in combinations(vectors, 2)])
    else:
        products = sum(torch.outer(a, b) for a in vectors for b in vectors).flatten()
    return mlp(model.mlp, torch.cat([*vectors, products, rows.dense[row]]))[0]


def autoint(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    dense = [x * v for x, v in zip(rows.dense[row], model.dense_vectors, strict=True)]
    e = [*vectors, *dense]
    for layer in model.layers:
        heads = [[] for _ in e]
        for head in range(layer.heads):
            part = slice(head * 4, head * 4 + 4)
            q, k, v = (w[:, part].T for w in (layer.query, layer.key, layer.value))
            for m, vector in enumerate(e):
                scores = torch.stack([(q @ vector) @ (k @ other) for other in e]).exp()
                alpha = scores / scores.sum()
                heads[m].append(sum(a * (v @ other) for a, other in zip(alpha, e, strict=True)))
        e = [torch.relu(torch.cat(h) + layer.residual.T @ x) for h, x in zip(heads, e, strict=True)]
    return model.head.weight[0] @ torch.cat(e) + model.head.bias[0]


def xdeepfm(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    x, pooled = list(vectors), []
    for weight in model.cin.weights:
        x = [
            sum(w[i, j] * x[i] * vectors[j] for i in range(len(x)) for j in range(len(vectors)))
            for w in weight
        ]
        pooled += [vector.sum() for vector in x]
    crossed = model.cin_head.weight[0] @ torch.stack(pooled)
    deep = mlp(model.mlp, torch.cat([*vectors, rows.dense[row]]))[0]
    return linear(model, rows, row) + crossed + deep


def lr(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    dense = sum(w * x for w, x in zip(model.dense, rows.dense[row], strict=True))
    return model.bias + vectors.sum() + dense


def fibinet(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    squeezed = torch.stack([v.mean() for v in vectors])
    narrow, wide = model.senet.narrow.weight, model.senet.wide.weight
    weights = torch.relu(wide @ torch.relu(narrow @ squeezed))
    weighted = [a * v for a, v in zip(weights, vectors, strict=True)]
    products = []
    for layer, these in ((model.bilinear, vectors), (model.senet_bilinear, weighted)):
        for place, (i, j) in enumerate(combinations(range(len(vectors)), 2)):
            w = layer.weights[{"all": 0, "each": i, "interaction": place}[layer.kind]]
            products.append((these[i] @ w) * these[j])
    deep = mlp(model.mlp, torch.cat([*products, rows.dense[row]]))[0]
    return linear(model, rows, row) + deep


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    spread = (x - x.mean()).square().mean()
    return (x - x.mean()) / (spread + norm.eps).sqrt() * norm.weight + norm.bias


def masknet(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    embedded = torch.cat([*vectors, rows.dense[row]])
    normed = [layer_norm(n, v) for n, v in zip(model.norms, vectors, strict=True)]
    first = x = torch.cat([*normed, rows.dense[row]])
    outputs = []
    for block in model.blocks:
        a, p = block.aggregate, block.project
        mask = p.weight @ torch.relu(a.weight @ embedded + a.bias) + p.bias
        given = x if model.structure == "serial" else first
        x = torch.relu(layer_norm(block.norm, block.hidden.weight @ (mask * given)))
        outputs.append(x)
    return mlp(model.mlp, x if model.structure == "serial" else torch.cat(outputs))[0]


def finalmlp(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    features = torch.cat([*vectors, rows.dense[row]])
    streams = []
    for gate, stream in ((model.gate1, model.mlp1), (model.gate2, model.mlp2)):
        chosen = torch.cat([vectors[i] for i in gate.places]) if gate.places else gate.context[0]
        streams.append(mlp(stream, 2 / (1 + torch.exp(-mlp(gate.mlp, chosen))) * features))
    one, two = streams
    fusion, total = model.fusion, model.fusion.first.bias[0]
    u, v = len(one) // fusion.heads, len(two) // fusion.heads
    for head, w in enumerate(fusion.weights):
        total = total + one[head * u : head * u + u] @ w @ two[head * v : head * v + v]
    return total + fusion.first.weight[0] @ one + fusion.second.weight[0] @ two


def gdcn(model: CTRModel, rows: Batch, row: int, vectors: Tensor) -> Tensor:
    c0 = c = torch.cat([*vectors, rows.dense[row]])
    for cross, gate in zip(model.cross.crosses, model.cross.gates, strict=True):
        c = c0 * (cross.weight @ c + cross.bias) / (1 + torch.exp(-gate.weight @ c)) + c
    stacked = model.structure == "stacked"
    features = mlp(model.mlp, c) if stacked else torch.cat([c, mlp(model.mlp, c0)])
    return model.head.weight[0] @ features + model.head.bias[0]


DEFINITIONS: dict[str, Callable[[CTRModel, Batch, int, Tensor], Tensor]] = {
    "fm": fm,
    "deepfm": deepfm,
    "wide_deep": wide_deep,
    "dcn": dcn,
    "dcnv2": dcnv2,
    "nfm": nfm,
    "pnn": pnn,
    "autoint": autoint,
    "xdeepfm": xdeepfm,
    "lr": lr,
    "fibinet": fibinet,
    "masknet": masknet,
    "finalmlp": finalmlp,
    "gdcn": gdcn,
}


@pytest.mark.parametrize("kind", [kind for kind, one in CONFIGS.items() if one.name != "dlrm"])
def test_logits_follow_the_definition(kind: str, schema: DatasetSchema) -> None:
    """DLRM's, with its options, is in test_dlrm.py."""
    config = CONFIGS[kind]
    model, rows = build(config, schema), batch(schema)
    embedded = model.embedding(rows.ids, rows.bags)
    for row, logit in enumerate(model(rows)):
        expected = DEFINITIONS[config.name](model, rows, row, embedded[row])
        torch.testing.assert_close(logit, expected, rtol=1e-9, atol=1e-12)


@each_model
def test_parameter_count(config: AnyModelConfig, schema: DatasetSchema) -> None:
    def affine(*widths: int) -> int:
        return sum(a * b + b for a, b in pairwise(widths))

    categories, fields, dense = sum(f.num_categories for f in schema.fields), 3, 2
    dims = [config.field_dims.get(field.name, 3) for field in schema.fields]
    tables = categories * 9 + sum(dims) * 9
    first_order = categories + dense + 1
    width = fields * 3 + dense
    interacting = 4 * (3 * 8 + 8 * 8)  # four matrices a layer, no biases
    expected = {
        "dlrm": tables + affine(dense, 5, 3) + affine(3 + 6, 6, 1),
        "fm": tables + first_order,
        "deepfm": tables + first_order + affine(width, 6, 5, 1),
        "wide_deep": tables + first_order + affine(width, 6, 5, 1),
        "dcn": tables + 3 * 2 * width + affine(width, 6, 5) + affine(width + 5, 1),
        "nfm": tables + first_order + affine(3, 6, 5, 1),
        "pnn": tables + affine(width + 3, 6, 5, 1),
        "autoint": tables + dense * 3 + interacting + affine((fields + dense) * 8, 1),
        "xdeepfm": tables + first_order + affine(width, 6, 5, 1) + 4 * 9 + 5 * 4 * 3 + 9,
        "dcnv2": tables + 3 * affine(width, width) + affine(width, 6, 5) + affine(5, 1),
        "lr": categories * 9 + fields * 9 + dense + 1,
        "fibinet": tables + first_order + 2 * fields + affine(2 * 3 * 3 + dense, 6, 5, 1),
        "masknet": tables
        + fields * 2 * 3
        + 2 * affine(width, 2 * width, width)
        + 2 * (width * 5 + 2 * 5)
        + affine(2 * 5, 6, 1),
        "finalmlp": tables + affine(width, 6, 4) + affine(width, 8) + affine(4, 1) + 8,
        "gdcn": tables + 2 * (affine(width, width) + width * width) + affine(width, 6, 5),
    }[config.name]
    if isinstance(config, FirstOrderConfig) and config.two_layer_first_order:
        expected += categories * (9 - 1) + fields * 9
    if isinstance(config, FiBiNETConfig):
        expected += 2 * {"all": 1, "each": 2, "interaction": 3}[config.bilinear] * 3 * 3
    if isinstance(config, MaskNetConfig) and config.structure == "serial":
        blocks = affine(width, 2 * width, width) + width * 5 + 2 * 5
        blocks += 2 * (affine(width, 10, 5) + 5 * 5 + 2 * 5)
        expected = tables + fields * 2 * 3 + blocks + affine(5, 1)
    if isinstance(config, FinalMLPConfig):
        for gate in (config.gate1, config.gate2):
            expected += affine(max(1, len(gate)) * 3, 5, width) + (0 if gate else 3)
        expected += 4 * 8 // config.heads
    if isinstance(config, GDCNConfig):
        expected += affine(5 + (width if config.structure == "parallel" else 0), 1)
    if isinstance(config, DCNv2Config) and config.structure == "parallel":
        expected = tables + 2 * affine(width, width) + affine(width, 6) + affine(6 + width, 1)
    if isinstance(config, DCNv2Config) and config.experts:
        layer = 3 * (2 * width * 4 + 4 * 4) + width + 3 * width
        expected = tables + 2 * layer + affine(width, 6, 5) + affine(5, 1)
    if isinstance(config, PNNConfig) and config.product == "outer":
        expected = tables + affine(width + 9, 6, 5, 1)
    model = build_model(config, schema)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@each_model
def test_overfits_a_small_batch_and_collapses(config: AnyModelConfig, small_data: Path) -> None:
    torch.sparse.check_sparse_tensor_invariants.disable()
    data = PreparedDataset(small_data)
    rows = next(BatchLoader(data.split("train"), 32).epoch())
    torch.manual_seed(0)
    dim = 1 if config.name == "lr" else 8
    model = build_model(config.model_copy(update={"dim": dim, "inner_dim": 24}), data.schema)
    optimizers = Optimizers(OptimizersConfig.same("adagrad", 0.1), model, 64)
    for _ in range(300):
        optimizers.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(rows), rows.labels["label"])
        loss.backward()
        optimizers.step()
    assert loss.item() < 0.05
    plain = model.collapse()
    torch.testing.assert_close(plain(rows), model(rows), rtol=1e-4, atol=1e-5)


@each_model
def test_trains_and_loads_as_a_run(
    config: AnyModelConfig, small_data: Path, tmp_path: Path
) -> None:
    run = RunConfig(
        data=small_data, model=config, training=TrainingConfig(epochs=1, batch_size=128)
    )
    summary = train(run, tmp_path / "run")
    model, loaded, _ = load_collapsed(tmp_path / "run" / "model.safetensors")
    assert loaded == config.model_copy(update={"inner_dim": None})
    assert summary.model_bytes == sum(4 * p.numel() for p in model.parameters())
    trained, data = load_trained(RunDirectory(tmp_path / "run"))
    rows = data.split("valid")
    np.testing.assert_allclose(predict(model, rows), predict(trained, rows), rtol=1e-5)
    written = RunConfig.load(tmp_path / "run" / "config.yaml")
    assert written.model == config


def test_pairs_do_not_depend_on_the_order_of_the_fields() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(5, 4, 3, dtype=torch.float64)
    shuffled = vectors[:, torch.randperm(4)]
    torch.testing.assert_close(bi_interaction(shuffled), bi_interaction(vectors))
    torch.testing.assert_close(pairwise_sum(shuffled), pairwise_sum(vectors))


def test_impossible_settings_are_named(schema: DatasetSchema) -> None:
    with pytest.raises(ConfigError, match="heads=3 does not divide a last width of 4"):
        build_model(FinalMLPConfig(mlp1=[4], mlp2=[6], heads=3), schema)
    with pytest.raises(ConfigError, match="gate: no field 'nobody'; the fields are C1, C2, C3"):
        build_model(FinalMLPConfig(gate1=["nobody"]), schema)
    with pytest.raises(ConfigError, match="'dim'"):
        ModelConfig.parse({"name": "lr", "dim": 4}, "x")
    single = schema.model_copy(update={"fields": schema.fields[:1]})
    with pytest.raises(ConfigError, match="at least two fields"):
        build_model(FiBiNETConfig(), single)


def test_settings_of_any_model() -> None:
    assert {config.name for config in CONFIGS.values()} == set(MODELS)
    assert ModelConfig.parse({"dim": 4}, "x") == DLRMConfig(dim=4), "DLRM where none is named"
    assert ModelConfig.parse({"name": "fm", "dim": 4}, "x") == FMConfig(dim=4)
    for values, message in (
        (
            {"name": "deepfn"},
            "x: 'name': no model 'deepfn'; did you mean 'deepfm'? there are: ",
        ),
        ({"name": "deepfm", "mpl": [3]}, "x: unknown key 'mpl'; did you mean 'mlp'?"),
        ({"name": "dcnv2", "cross_layers": 0}, "x: 'cross_layers': Input should be"),
        ({"name": "fm", "dim": "a"}, "x: 'dim': Input should be a valid integer"),
    ):
        with pytest.raises(ConfigError) as caught:
            ModelConfig.parse(values, "x")
        assert message in str(caught.value)
