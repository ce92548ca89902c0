"""Time whole training steps (forward, loss, backward, optimizers) of DLRM and DeepFM against peers.

Same Criteo-shaped batches, widths and optimizer for all: 26 fields, for DLRM 13 dense features too
(DeepFM goes without: each library treats them in its own way). FuxiCTR and DeepCTR-Torch take the
steps that their own ``fit`` takes. The contenders take turns in one process; peak memory is of a
process of its own for each.

    python benchmarks/training.py --json training.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from embedding import AuthorsWay, Setting, id_batches
from rich.console import Console
from rich.table import Table
from timing import environment, interleave, write_json
from torch import Tensor, nn
from torch.nn import functional as F

from mlet.data import Batch
from mlet.data.schema import DatasetSchema, DenseSchema, FieldSchema, SplitSchema
from mlet.models import CTRModel, ModelConfig, build_model
from mlet.training.config import OptimizersConfig
from mlet.training.optimizers import Optimizers

Step = Callable[[Batch], object]
ModelName = Literal["dlrm", "deepfm", "deepfm-wide"]

OURS_SLT, OURS = "SLT, mlet", "MLET, mlet"
AUTHORS = "MLET, the authors' way"
FUXICTR, DEEPCTR = "SLT, FuxiCTR", "SLT, DeepCTR-Torch"

#: The authors' DLRM on Criteo-Kaggle; DeepFM as wide as FuxiCTR makes it by default (on this
#: machine the tables then take most of the time), and as wide as in its own paper (the MLP does).
WIDTHS: dict[ModelName, dict[str, list[int]]] = {
    "dlrm": {"bottom_mlp": [512, 256, 64], "top_mlp": [512, 256]},
    "deepfm": {"mlp": [64, 64, 64]},
    "deepfm-wide": {"mlp": [400, 400, 400]},
}
OPTIMIZER: dict[ModelName, Literal["sgd", "adam"]] = {
    "dlrm": "sgd",
    "deepfm": "adam",
    "deepfm-wide": "adam",
}
CONTENDERS: dict[ModelName, list[str]] = {
    "dlrm": [OURS_SLT, OURS, AUTHORS],
    "deepfm": [OURS_SLT, OURS, FUXICTR, DEEPCTR],
    "deepfm-wide": [OURS_SLT, OURS, FUXICTR, DEEPCTR],
}
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Task:
    """A model and the shape of its batches."""

    model: ModelName
    setting: Setting

    @property
    def dense(self) -> int:
        return 13 if self.model == "dlrm" else 0

    @property
    def schema(self) -> DatasetSchema:
        split = SplitSchema(rows=1, click_rate=0.25)
        return DatasetSchema(
            source="benchmark",
            split_by="given",
            seed=0,
            dense=[DenseSchema(name=f"I{i}", scale="none") for i in range(self.dense)],
            fields=[
                FieldSchema(
                    name=f"C{i}",
                    num_categories=size,
                    multi_valued=False,
                    min_count=1,
                    total_categories=size,
                )
                for i, size in enumerate(self.setting.sizes)
            ],
            splits={"train": split, "valid": split, "test": split},
        )

    def batches(self, count: int) -> Iterator[Batch]:
        torch.manual_seed(1)
        for ids in id_batches(self.setting, count):
            labels = (torch.rand(len(ids)) < 0.25).float()
            yield Batch({"label": labels}, torch.rand(len(ids), self.dense), ids, {})

    def build(self, inner_dim: int | None) -> CTRModel:
        name = self.model.removesuffix("-wide")
        settings = {"name": name, "dim": self.setting.dim, "inner_dim": inner_dim}
        return build_model(
            ModelConfig.parse({**settings, **WIDTHS[self.model]}, "benchmark"), self.schema
        )


class AuthorsEmbedding(nn.Module):
    """In the place of our embedding layer, with its call."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.layers = AuthorsWay(setting.sizes, setting.inner_dim, setting.dim)

    def forward(self, ids: Tensor, bags: object = None) -> Tensor:
        out: Tensor = self.layers(ids)
        return out


def ours(task: Task, inner_dim: int | None) -> Step:
    model = task.build(inner_dim)
    optimizers = Optimizers(
        OptimizersConfig.same(OPTIMIZER[task.model], LEARNING_RATE), model, task.setting.batch
    )

    def step(batch: Batch) -> None:
        loss = F.binary_cross_entropy_with_logits(model(batch), batch.labels["label"])
        optimizers.zero_grad()
        loss.backward()
        optimizers.step()

    return step


def authors(task: Task) -> Step:
    """Our DLRM around the embedding of the authors' fork; SGD as there."""
    model = task.build(None)
    model.embedding = AuthorsEmbedding(task.setting)  # type: ignore[assignment]
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step(batch: Batch) -> None:
        loss = F.binary_cross_entropy_with_logits(model(batch), batch.labels["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def fuxictr(task: Task) -> Step:
    """FuxiCTR's DeepFM of its own layers, trained by ``BaseModel.train_step``."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    setting = task.setting

    class DeepFM(BaseModel):  # type: ignore[misc]
        def __init__(self, feature_map: FeatureMap, folder: str) -> None:
            super().__init__(feature_map, "DeepFM", model_root=folder, metrics=["AUC"], verbose=0)
            self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim=setting.dim)
            self.fm = FactorizationMachine(feature_map)
            self.mlp = MLP_Block(
                input_dim=feature_map.sum_emb_out_dim(),
                output_dim=1,
                hidden_units=WIDTHS[task.model]["mlp"],
            )
            self.reset_parameters()
            self.model_to_device()

        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            features = self.get_inputs(inputs)
            embedded = self.embedding_layer(features)
            logits = self.fm(features, embedded) + self.mlp(embedded.flatten(start_dim=1))
            return {"y_pred": self.output_activation(logits)}

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "benchmark").mkdir()
        feature_map = FeatureMap("benchmark", folder)
        feature_map.features = OrderedDict(
            (f"C{i}", {"type": "categorical", "source": "", "vocab_size": size})
            for i, size in enumerate(setting.sizes)
        )
        feature_map.labels, feature_map.num_fields = ["label"], len(setting.sizes)
        feature_map.default_emb_dim = setting.dim
        feature_map.total_features = sum(setting.sizes)
        feature_map.set_column_index()
        model = DeepFM(feature_map, folder)
    model.compile("adam", "binary_crossentropy", lr=LEARNING_RATE)
    model._max_gradient_norm = 10.0  # what its ``fit`` sets
    model.train()

    def step(batch: Batch) -> None:
        columns = {f"C{i}": column for i, column in enumerate(batch.ids.unbind(1))}
        model.train_step({**columns, "label": batch.labels["label"]})

    return step


def deepctr(task: Task) -> Step:
    """DeepCTR-Torch's DeepFM; the step is the body of its ``fit``."""
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import DeepFM

    setting = task.setting
    columns = [
        SparseFeat(f"C{i}", vocabulary_size=size, embedding_dim=setting.dim)
        for i, size in enumerate(setting.sizes)
    ]
    model = DeepFM(
        columns,
        columns,
        dnn_hidden_units=WIDTHS[task.model]["mlp"],
        l2_reg_embedding=0,
        l2_reg_linear=0,
    )
    model.compile(torch.optim.Adam(model.parameters(), lr=LEARNING_RATE), "binary_crossentropy")
    model.train()

    def step(batch: Batch) -> None:
        predicted = model(batch.ids.float()).squeeze(-1)
        model.optim.zero_grad()
        loss = model.loss_func(predicted, batch.labels["label"], reduction="sum")
        (loss + model.get_regularization_loss() + model.aux_loss).sum().backward()
        model.optim.step()

    return step


def build(name: str, task: Task) -> Step:
    if name == OURS_SLT:
        return ours(task, None)
    if name == OURS:
        return ours(task, task.setting.inner_dim)
    return {AUTHORS: authors, FUXICTR: fuxictr, DEEPCTR: deepctr}[name](task)


def measure(task: Task, rounds: int) -> dict[str, float]:
    """Milliseconds of a training step, by contender."""
    contenders = {name: build(name, task) for name in CONTENDERS[task.model]}
    return interleave(contenders, task.batches(rounds + 3))


def peak_bytes(name: str, task: Task) -> int:
    """Peak memory of a process that makes five steps of one contender.

    Each is a fork of one process that has imported what all need and has done nothing else.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["mlet.training", "torch._dynamo"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(alone, name, task).result()


def alone(name: str, task: Task) -> int:
    torch.sparse.check_sparse_tensor_invariants.disable()
    step = build(name, task)
    for batch in task.batches(5):
        step(batch)
    # Not getrusage: its peak begins with that of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(WIDTHS), help="default: all")
    parser.add_argument("--batch", type=int, default=2_048, help="rows of a step")
    parser.add_argument("--cap", type=int, default=200_000, help="largest table")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each contender")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()

    torch.sparse.check_sparse_tensor_invariants.disable()
    setting = Setting(batch=options.batch, cap=options.cap)
    rows = []
    models: list[ModelName] = [options.model] if options.model else list(WIDTHS)
    for model in models:
        task = Task(model, setting)
        medians = measure(task, options.rounds)
        table = Table(
            title=f"{model}, {OPTIMIZER[model]}, batch {setting.batch}, d={setting.dim}, "
            f"k={setting.inner_dim}, cap {setting.cap:,}",
            title_justify="left",
        )
        for column in ("contender", "median ms", "samples/s", "÷ our SLT", "peak memory"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for name, median in medians.items():
            peak = peak_bytes(name, task)
            table.add_row(
                name,
                f"{median:.1f}",
                f"{1e3 * setting.batch / median:,.0f}",
                f"{median / medians[OURS_SLT]:.2f}",
                f"{peak / 2**30:.2f} GiB",
            )
            rows.append({"model": model, "name": name, "median_ms": median, "peak_bytes": peak})
        Console().print(table)
    write_json(
        options.json,
        {"environment": environment("fuxictr", "deepctr-torch"), "rows": rows},
    )


if __name__ == "__main__":
    main()
