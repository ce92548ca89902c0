"""Models of other people, plain or converted, as their own trainers train them.

Each function gives the step of one contender. A *way* is ``plain``; ``before``, converted, with a
projection for every lookup in torch's operations; ``converted``, with torch's optimizer; ``fused``,
converted, with `mlet.optim.fused`; TorchRec's tables that way ``table by table``, too, as layers by
themselves.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mlet
from mlet.data.synthetic import CRITEO_CARDINALITIES
from mlet.nn import two_layer

Step = Callable[[Any], object]


@dataclass(frozen=True)
class Size:
    """Of tables and batches.

    Attributes:
        towers: rows of each of the two tables of the retrieval model.
        cap: of the largest field of the click models.
        words: of the language model's and of the sequence model's table.
        batch: rows of a step, in units of each model's own.
    """

    towers: int = 1_000_000
    cap: int = 200_000
    words: int = 30_000
    batch: float = 1.0

    def rows(self, of_model: int) -> int:
        return max(8, int(of_model * self.batch))


@cache
def _law(rows: int, exponent: float) -> tuple[Any, Any]:
    weights = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -exponent)
    return weights, np.random.default_rng(rows).permutation(rows)


def skewed(generator: Any, rows: int, count: int, exponent: float) -> Tensor:
    """Ids with P(i) ∝ (i + 1)^−exponent, scattered over the table; 0 is uniform."""
    weights, place = _law(rows, exponent)
    return torch.from_numpy(
        place[np.searchsorted(weights, generator.random(count) * weights[-1], "right")]
    )


def converted(model: nn.Module, way: str, inner_dim: int, **options: Any) -> nn.Module:
    if way == "plain":
        return model
    if way not in ("before", "fused, table by table"):
        return mlet.convert(model, inner_dim, **options)
    # Layers by themselves, of TorchRec's collections too.
    with patch.object(import_module("mlet.surgery.convert"), "collections_of", lambda *_: []):
        return mlet.convert(model, inner_dim, **options)


def optimizer_of(kind: Any, model: nn.Module, way: str, **options: Any) -> torch.optim.Optimizer:
    if way.startswith("fused"):
        return mlet.optim.fused(kind, model, **options)
    made: torch.optim.Optimizer = kind(model.parameters(), **options)
    return made


def as_it_was(step: Step, way: str) -> Step:
    """Of the way ``before``: layers that the engine does not serve."""
    if way != "before":
        return step

    def run(batch: Any) -> object:
        with patch.object(two_layer, "engine_serves", lambda *tensors: False):
            return step(batch)

    return run


# Two towers: users and items, 32 wide.


class Tower(nn.Module):
    """A table and two layers."""

    def __init__(self, rows: int, *, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 32, sparse=sparse)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.layers(self.table(ids))
        return out


class TwoTower(nn.Module):
    """Click logits."""

    def __init__(self, rows: int, *, sparse: bool) -> None:
        super().__init__()
        self.users, self.items = Tower(rows, sparse=sparse), Tower(rows, sparse=sparse)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        out: Tensor = (self.users(users) * self.items(items)).sum(dim=1)
        return out


def two_tower_batches(size: Size, count: int, exponent: float, device: str) -> Iterator[Any]:
    generator = np.random.default_rng(0)
    rows = size.rows(4_096)
    for _ in range(count):
        ids = [skewed(generator, size.towers, rows, exponent).to(device) for _ in range(2)]
        labels = torch.from_numpy((generator.random(rows) < 0.25).astype(np.float32))
        yield ids[0], ids[1], labels.to(device)


def two_tower(size: Size, way: str, kind: str, device: str = "cpu") -> Step:
    """With ``dense_adam``, or sparse gradients and ``sgd``, ``adagrad`` or ``sparse_adam``."""
    torch.manual_seed(0)
    plain = TwoTower(size.towers, sparse=kind != "dense_adam").to(device)
    model = converted(plain, way, 64)
    dense = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}.get(kind, torch.optim.Adam)
    if kind == "sparse_adam" and way != "fused":
        tables = {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.endswith(("table.weight", "table.inner"))
        }
        rest = [p for name, p in model.named_parameters() if name not in tables]
        steppers = [
            torch.optim.SparseAdam(list(tables.values()), lr=1e-3),
            torch.optim.Adam(rest, lr=1e-3),
        ]
    else:
        steppers = [optimizer_of(dense, model, way, lr=1e-3)]

    def step(batch: Any) -> None:
        users, items, labels = batch
        for stepper in steppers:
            stepper.zero_grad()
        F.binary_cross_entropy_with_logits(model(users, items), labels).backward()
        for stepper in steppers:
            stepper.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return as_it_was(step, way)


# Click models on 26 fields, 16 wide, trained by their libraries' own ``fit``.


def field_sizes(size: Size) -> list[int]:
    return [min(rows, size.cap) for rows in CRITEO_CARDINALITIES]


def click_batches(size: Size, count: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of five steps each."""
    generator = np.random.default_rng(0)
    rows = 5 * size.rows(2_048)
    for _ in range(count):
        yield {
            **{
                f"C{place}": skewed(generator, n, rows, 1.1).numpy()
                for place, n in enumerate(field_sizes(size))
            },
            "label": (generator.random(rows) < 0.25).astype(np.float64),
        }


def deepctr(size: Size, way: str) -> Step:
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import DeepFM

    columns = [
        SparseFeat(f"C{place}", vocabulary_size=n, embedding_dim=16)
        for place, n in enumerate(field_sizes(size))
    ]
    torch.manual_seed(0)
    model = DeepFM(
        columns, columns, dnn_hidden_units=(64, 64, 64), l2_reg_embedding=0, l2_reg_linear=0
    )
    converted(model, way, 64, exclude="*linear_model*")
    model.compile(optimizer_of(torch.optim.Adam, model, way, lr=1e-3), "binary_crossentropy")

    def step(rows: Mapping[str, np.ndarray]) -> None:
        feed = {name: column for name, column in rows.items() if name != "label"}
        with redirect_stdout(StringIO()):  # it prints its device whatever it is told
            model.fit(feed, rows["label"], batch_size=size.rows(2_048), epochs=1, verbose=0)

    return as_it_was(step, way)


def fuxictr(size: Size, way: str) -> Step:
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class DeepFM(BaseModel):  # type: ignore[misc]
        def __init__(self, feature_map: FeatureMap, folder: str) -> None:
            super().__init__(feature_map, "DeepFM", model_root=folder, metrics=["AUC"], verbose=0)
            self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim=16)
            self.fm = FactorizationMachine(feature_map)
            self.mlp = MLP_Block(
                input_dim=feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[64, 64, 64]
            )
            self.reset_parameters()

        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            features = self.get_inputs(inputs)
            embedded = self.embedding_layer(features)
            logits = self.fm(features, embedded) + self.mlp(embedded.flatten(start_dim=1))
            return {"y_pred": self.output_activation(logits)}

    sizes = field_sizes(size)
    folder = tempfile.mkdtemp()
    (Path(folder) / "benchmark").mkdir()
    feature_map = FeatureMap("benchmark", folder)
    feature_map.features = OrderedDict(
        (f"C{place}", {"type": "categorical", "source": "", "vocab_size": n})
        for place, n in enumerate(sizes)
    )
    feature_map.labels, feature_map.num_fields = ["label"], len(sizes)
    feature_map.default_emb_dim, feature_map.total_features = 16, sum(sizes)
    feature_map.set_column_index()
    torch.manual_seed(0)
    model = DeepFM(feature_map, folder)
    converted(model, way, 64, exclude="*lr_layer*")
    model.compile("adam", "binary_crossentropy", lr=1e-3)
    if way == "fused":
        model.optimizer = mlet.optim.fused(torch.optim.Adam, model, lr=1e-3)
    batch = size.rows(2_048)
    # Its ``fit`` validates, saves and loads weights after an epoch, which is no part of a step.
    model.eval_step = lambda: None
    model.load_weights = lambda checkpoint: None

    def step(rows: Mapping[str, np.ndarray]) -> None:
        columns = {name: torch.from_numpy(column) for name, column in rows.items()}
        count = len(columns["label"])
        batches = [
            {name: column[start : start + batch] for name, column in columns.items()}
            for start in range(0, count, batch)
        ]
        with redirect_stderr(StringIO()):
            model.fit(batches, epochs=1, validation_data=batches[:1])

    return as_it_was(step, way)


# TorchRec's DLRM, by its train pipeline.


def torchrec_batches(size: Size, count: int) -> Iterator[Any]:
    from torchrec.datasets.utils import Batch
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    generator = np.random.default_rng(0)
    rows, sizes = size.rows(2_048), field_sizes(size)
    for _ in range(count):
        ids = torch.cat([skewed(generator, n, rows, 1.1) for n in sizes])
        yield Batch(
            dense_features=torch.rand(rows, 13),
            sparse_features=KeyedJaggedTensor.from_lengths_sync(
                [f"C{place}" for place in range(len(sizes))],
                ids,
                torch.ones(rows * len(sizes), dtype=torch.int32),
            ),
            labels=torch.from_numpy((generator.random(rows) < 0.25).astype(np.int32)),
        )


def torchrec(size: Size, way: str) -> Step:
    from torchrec.distributed.train_pipeline import TrainPipelineBase
    from torchrec.models.dlrm import DLRM, DLRMTrain
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(
            name=f"t{place}", embedding_dim=16, num_embeddings=n, feature_names=[f"C{place}"]
        )
        for place, n in enumerate(field_sizes(size))
    ]
    model: nn.Module = DLRMTrain(
        DLRM(EmbeddingBagCollection(tables=tables), 13, [512, 256, 16], [512, 256, 1])
    )
    model = converted(model, way, 64)
    optimizer = optimizer_of(torch.optim.Adagrad, model, way, lr=0.01)
    pipeline = TrainPipelineBase(model, optimizer, torch.device("cpu"))
    given: list[Any] = []
    feed = iter(lambda: given[0], None)  # it takes a batch ahead: the same one at first

    def step(batch: Any) -> None:
        given[:] = [batch]
        pipeline.progress(feed)

    return as_it_was(step, way)


# Words and sequences.


def word_batches(size: Size, count: int) -> Iterator[Any]:
    generator = np.random.default_rng(0)
    rows = size.rows(32)
    for _ in range(count):
        words = 1 + skewed(generator, size.words - 1, 64 * rows, 1.1).view(rows, 64)
        yield words, torch.from_numpy(generator.integers(0, 2, rows))


def bert(size: Size, way: str) -> Step:
    """A small classifier from a configuration."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model: nn.Module = BertForSequenceClassification(
        BertConfig(
            vocab_size=size.words,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
        )
    )
    model = converted(model, way, 256, include="*.word_embeddings")
    optimizer = optimizer_of(torch.optim.AdamW, model, way, lr=1e-3)

    def step(batch: Any) -> None:
        words, labels = batch
        optimizer.zero_grad()
        model(input_ids=words, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return as_it_was(step, way)


class NextItem(nn.Module):
    """As SASRec: attention over what came before, scores of what came next and of another item."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items, 32, padding_idx=0)
        self.places = nn.Parameter(torch.zeros(64, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, items: Tensor, asked: Tensor) -> Tensor:
        length = items.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        states = self.layers(self.items(items) + self.places[:length], mask=mask, is_causal=True)
        scores: Tensor = (states.unsqueeze(2) * self.items(asked)).sum(dim=3)
        return scores


def next_item(size: Size, way: str) -> Step:
    torch.manual_seed(0)
    model = converted(NextItem(size.words), way, 64)
    optimizer = optimizer_of(torch.optim.Adam, model, way, lr=1e-3)

    def step(batch: Any) -> None:
        items, _ = batch
        asked = torch.stack([items.roll(-1, 1), items.flip(0)], dim=2)
        scores = model(items, asked)
        optimizer.zero_grad()
        (F.softplus(-scores[..., 0]) + F.softplus(scores[..., 1])).mean().backward()
        optimizer.step()

    return as_it_was(step, way)
