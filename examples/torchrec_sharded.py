"""TorchRec's DLRM on several processes, with two-layer tables sharded by TorchRec's planner.

    torchrun --standalone --nproc-per-node 4 examples/torchrec_sharded.py

Three lines are ours: ``convert`` before the model is sharded, a sharder that knows what came of it,
``collapse`` after. Tables are trained k wide, each process has its shards of them, and what the
processes exchange is d wide. The checkpoint is one of `torch.distributed.checkpoint`.
"""

import copy
import logging
import os
import tempfile
from datetime import timedelta

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed
from torch.distributed import checkpoint
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.types import ShardingEnv
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import mlet
from mlet.distributed import TwoLayerEmbeddingBagCollectionSharder


def build() -> DLRMTrain:
    torch.manual_seed(0)  # the same on every process
    tables = [
        EmbeddingBagConfig(
            name=f"table_{name}", embedding_dim=8, num_embeddings=size, feature_names=[name]
        )
        for name, size in (("user", 200), ("item", 500), ("shop", 50))
    ]
    return DLRMTrain(DLRM(EmbeddingBagCollection(tables=tables), 3, [16, 8], [16, 1]))


def make_batch(rows: int = 32) -> Batch:
    user, item, shop = (torch.randint(n, (rows,)) for n in (200, 500, 50))
    return Batch(
        dense_features=torch.rand(rows, 3),
        sparse_features=KeyedJaggedTensor.from_lengths_sync(
            ["user", "item", "shop"], torch.cat([user, item, shop]), torch.ones(3 * rows).int()
        ),
        labels=(user % 3 == item % 3).int(),
    )


def shard(model: DLRMTrain) -> DistributedModelParallel:
    options = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.05}
    sharders = [TwoLayerEmbeddingBagCollectionSharder(options)]
    topology = Topology(size, "cpu", local_world_size=size)
    planner = EmbeddingShardingPlanner(topology=topology)
    plan = planner.collective_plan(model, sharders, distributed.group.WORLD)
    env = ShardingEnv.from_process_group(distributed.group.WORLD)
    return DistributedModelParallel(
        model, env=env, device=torch.device("cpu"), plan=plan, sharders=sharders
    )


def scores(trained, batches) -> torch.Tensor:
    """Of this process's batches."""
    model = trained.module if hasattr(trained, "plan") else trained
    with torch.no_grad():
        found = [model.model(batch.dense_features, batch.sparse_features) for batch in batches]
        return torch.cat(found).sigmoid()


def largest(difference: torch.Tensor) -> float:
    """Over all processes."""
    value = difference.abs().max()
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return value.item()


logging.disable(logging.WARNING)
distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
rank, size = distributed.get_rank(), distributed.get_world_size()
say = print if rank == 0 else lambda *_: None

# Converted, sharded and collapsed at once, the model is what it was.
plain = build()
torch.manual_seed(1 + rank)
batches = [make_batch() for _ in range(20)]
model = mlet.collapse(shard(mlet.convert(copy.deepcopy(plain), inner_dim=32)))
say(f"convert and collapse: {largest(scores(model, batches) - scores(plain, batches)):.1e}")

model = shard(mlet.convert(build(), inner_dim=32))
say(model.plan)
dense = KeyedOptimizerWrapper(
    dict(in_backward_optimizer_filter(model.named_parameters())),
    lambda parameters: torch.optim.Adagrad(parameters, lr=0.05),
)
optimizer = CombinedOptimizer([model.fused_optimizer, dense])
for batch in batches:
    optimizer.zero_grad()
    loss, _ = model(batch)
    loss.backward()  # tables and projections are trained here
    optimizer.step()  # the rest here

folder = [tempfile.mkdtemp()]
distributed.broadcast_object_list(folder)
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
checkpoint.save(state, checkpoint_id=os.path.join(folder[0], "two-layer"))

before = scores(model.eval(), batches)
mlet.collapse(model)  # ordinary sharded tables, in the same places
checkpoint.save({"model": model.state_dict()}, checkpoint_id=os.path.join(folder[0], "plain"))
plain = build().eval()
state = plain.state_dict()
checkpoint.load({"model": state}, checkpoint_id=os.path.join(folder[0], "plain"))
plain.load_state_dict(state, strict=True)
difference = largest(scores(plain, batches) - before)
say(f"largest difference between trained and plain scores: {difference:.1e}")
assert difference < 1e-5
distributed.destroy_process_group()
