"""TorchRec: its DLRM on CPU with two-layer tables, trained by its own train pipeline.

Two lines are ours: ``convert`` on the unsharded model before, ``collapse`` after; and the optimizer
is of torch's class, made by `mlet.optim.fused`, which trains the tables by the rows that a batch
touches. The collection keeps its names, so the collapsed weights load into a plain collection.
"""

import copy

import torch
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineBase
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import mlet


def build() -> DLRMTrain:
    tables = [
        EmbeddingBagConfig(
            name=f"table_{name}", embedding_dim=8, num_embeddings=size, feature_names=[name]
        )
        for name, size in (("user", 200), ("item", 500))
    ]
    collection = EmbeddingBagCollection(tables=tables)
    return DLRMTrain(DLRM(collection, 3, [16, 8], [16, 1]))


def make_batch(rows: int = 128) -> Batch:
    user, item = torch.randint(200, (rows,)), torch.randint(500, (2 * rows,))
    lengths = torch.cat([torch.ones(rows), 2 * torch.ones(rows)]).int()
    return Batch(
        dense_features=torch.rand(rows, 3),
        sparse_features=KeyedJaggedTensor.from_lengths_sync(
            ["user", "item"], torch.cat([user, item]), lengths
        ),
        labels=(user % 3 == item[::2] % 3).int(),
    )


def largest_change(before: dict, after: dict) -> float:
    return max((after[name] - value).abs().max().item() for name, value in before.items())


torch.manual_seed(0)
batches = [make_batch() for _ in range(20)]
model = build()

# Converted and collapsed at once, the model is what it was.
as_built = copy.deepcopy(model.state_dict())
mlet.collapse(mlet.convert(model, inner_dim=32))
print(f"convert and collapse: {largest_change(as_built, model.state_dict()):.1e}")

mlet.convert(model, inner_dim=32)
print(mlet.summary(model))
optimizer = mlet.optim.fused(torch.optim.Adagrad, model, lr=0.05)
pipeline = TrainPipelineBase(model, optimizer, torch.device("cpu"))
feed = iter(batches)
for _ in batches:
    pipeline.progress(feed)


def scores(trained: DLRMTrain) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(
            [trained.model(batch.dense_features, batch.sparse_features) for batch in batches]
        )


model.eval()
before = scores(model)
mlet.collapse(model)
plain = build().eval()
plain.load_state_dict(model.state_dict(), strict=True)
difference = (scores(plain) - before).abs().max().item()
print(f"largest difference between trained and plain scores: {difference:.1e}")
assert difference < 1e-5
