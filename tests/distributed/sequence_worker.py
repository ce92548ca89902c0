"""What the processes of the tests do with sharded collections that pool nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from sharded_models import (
    KEYS,
    NEAR,
    batches,
    batches_of_their_own,
    check_factors,
    counts,
    loss_of,
    reference_optimizer,
    sharded,
)
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import mlet
from mlet.distributed import TwoLayerEmbeddingCollectionSharder
from mlet.errors import ConversionError

#: r is not converted.
SEQUENCES = {"p": "table_wise", "q": "row_wise", "r": "row_wise", "s": "row_wise"}


def sequence_config(name: str, n: int, *features: str, dim: int = 4) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=name, num_embeddings=n, embedding_dim=dim, feature_names=list(features)
    )


def sequence_configs() -> list[EmbeddingConfig]:
    """A feature of two tables, a table of two features."""
    return [
        sequence_config("p", 33, "a", "b"),
        sequence_config("q", 35, "b"),
        sequence_config("r", 31, "c"),
        sequence_config("s", 30, "a"),
    ]


def sequences(**options: Any) -> Any:
    """Tables of several k, looked up together."""
    torch.manual_seed(0)
    plain = EmbeddingCollection(tables=sequence_configs(), **options)
    return mlet.convert(nn.ModuleDict({"sparse": plain}), {"*.[ps]": 16, "*.q": 24})


def sequence_sharder(rule: Any, **options: Any) -> Any:
    fused = {"optimizer": rule, "learning_rate": 0.1}
    return TwoLayerEmbeddingCollectionSharder(fused, **options)


def vectors(model: Any, batch: Any) -> dict[str, Any]:
    return dict(model.module["sparse"](batch) if hasattr(model, "plan") else model["sparse"](batch))


def own(found: Any, rows: slice) -> slice:
    """Where the vectors of some rows of a batch are."""
    first = int(found.lengths()[: rows.start].sum())
    return slice(first, first + int(found.lengths()[rows].sum()))


def values(found: dict[str, Any]) -> dict[str, Tensor]:
    return {name: jagged.values() for name, jagged in found.items()}


def check_sequences_like(
    model: Any, reference: Any, optimizer: Any, sizes: list[int], seed: int
) -> None:
    """The vectors of the unsharded model on the joined batch; and a step of both."""
    joined, (part, rows) = batches(sizes, seed)
    expected, found = vectors(reference, joined), vectors(model, part)
    assert set(found) == set(expected) == {"a@p", "b@p", "b@q", "c", "a@s"}
    for name, jagged in found.items():
        mine = own(expected[name], rows)
        torch.testing.assert_close(jagged.lengths(), expected[name].lengths()[rows])
        torch.testing.assert_close(jagged.values(), expected[name].values()[mine], **NEAR)
        ids, whole = jagged.weights_or_none(), expected[name].weights_or_none()
        assert (ids is None) == (whole is None)
        if ids is not None:
            assert ids.tolist() == whole[mine].tolist()
    (loss_of(values(found), 0.5) * len(sizes) / sum(sizes)).backward()
    optimizer.zero_grad()
    (loss_of(values(expected), 0.5) / sum(sizes)).backward()
    optimizer.step()


def sequences_train_like_one(folder: Path) -> None:
    """Every rule, distinct ids and all; what is saved, collapsed and counted."""
    size = dist.get_world_size()
    for rule, distinct in (
        (EmbOptimType.EXACT_SGD, True),
        (EmbOptimType.EXACT_ROWWISE_ADAGRAD, False),
        (EmbOptimType.EXACT_ADAGRAD, True),
    ):
        model = sequences(need_indices=distinct)
        reference = copy.deepcopy(model)
        optimizer = reference_optimizer(rule, reference, 0.1)
        sharder = sequence_sharder(rule, use_index_dedup=distinct)
        model = sharded(model, sharder, SEQUENCES)
        for seed in range(3):
            sizes = [1 + (seed + rank) % 4 for rank in range(size)]
            check_sequences_like(model, reference, optimizer, sizes, seed)
        check_factors(model, reference)
    state = {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}
    checkpoint.save(state, checkpoint_id=folder / "sequences")
    if dist.get_rank() == 0:
        torch.save(reference.state_dict(), folder / "sequences.pt")
        torch.save(optimizer.state_dict(), folder / "sequences-optimizer.pt")
    joined, (part, rows) = batches([5] * size, 9)
    assert mlet.collapse(model) is model
    assert type(model.module["sparse"]) is ShardedEmbeddingCollection
    expected = vectors(reference, joined)
    for name, jagged in vectors(model, part).items():
        mine = own(expected[name], rows)
        torch.testing.assert_close(jagged.values(), expected[name].values()[mine], **NEAR)
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder / "collapsed-sequences")
    keys = {key.rpartition(".")[2] for key in model.fused_optimizer.state_dict()["state"]}
    assert keys == {"weight"}
    counts_vectors()


def counts_vectors() -> None:
    """A vector that is asked for is exchanged d wide, where TorchRec's is k wide; and once of each
    process, however often it asks, with distinct ids."""
    k, d = 16, 4
    made = torch.Generator().manual_seed(dist.get_rank())
    ids = torch.randint(0, 4, (3 * 40,), generator=made)  # few, so that they are there often
    lengths = torch.full((3 * 8,), 5)
    part = KeyedJaggedTensor.from_lengths_sync(KEYS, ids, lengths)
    for kind in ("table_wise", "row_wise"):
        for distinct in (False, True):
            counted = []
            for two_layers in (True, False):
                torch.manual_seed(0)
                tables = [
                    sequence_config(n, 40, f, dim=d if two_layers else k)
                    for n, f in ("ta", "ub", "vc")
                ]
                model: Any = nn.ModuleDict({"sparse": EmbeddingCollection(tables=tables)})
                # TorchRec's own distinct ids take a GPU.
                sharder: Any = Sequences({"learning_rate": 0.1})
                if two_layers:
                    model = mlet.convert(model, k)
                    sharder = sequence_sharder(EmbOptimType.EXACT_SGD, use_index_dedup=distinct)
                model = sharded(model, sharder, dict.fromkeys("tuv", kind))
                vectors(model, part)  # ids have been exchanged once, to begin with
                with counts() as sizes:
                    loss_of(values(vectors(model, part)), 0.5).backward()
                counted.append(sizes)
            ours, theirs = counted
            asked = 3 * 40
            once = sum(len(ids[i : i + 40].unique()) for i in range(0, 120, 40))
            sent = torch.tensor([one["all_to_all_single"] for one in counted])
            total = torch.tensor([once if distinct else asked, asked])
            for of_all in (sent, total):
                dist.all_reduce(of_all)
            # There and back, four bytes a number.
            assert sent.tolist() == (2 * 4 * total * torch.tensor([d, k])).tolist(), kind
            assert ours["all_reduce"] - theirs["all_reduce"] == 3 * k * d * 4


class Sequences(EmbeddingCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise"]


def sequences_resume(folder: Path) -> None:
    """On as many processes as there are, what another number saved: the numbers of one."""
    rule = EmbOptimType.EXACT_ADAGRAD
    reference = sequences(need_indices=True)
    reference.load_state_dict(torch.load(folder / "sequences.pt"))
    optimizer = reference_optimizer(rule, reference, 0.1)
    optimizer.load_state_dict(torch.load(folder / "sequences-optimizer.pt"))
    model = sequences(device=torch.device("meta"), need_indices=True)
    model = sharded(model, sequence_sharder(rule), SEQUENCES)
    state = {"model": model.state_dict(), "optimizer": model.fused_optimizer.state_dict()}
    assert set(state["model"]) == set(reference.state_dict())
    checkpoint.load(state, checkpoint_id=folder / "sequences")
    model.load_state_dict(state["model"])
    model.fused_optimizer.load_state_dict(state["optimizer"])
    check_factors(model, reference)
    for seed in range(10, 12):
        check_sequences_like(model, reference, optimizer, [4] * dist.get_world_size(), seed)
    check_factors(model, reference)


def sequences_have_batches_of_their_own() -> None:
    """Each row of a feature is handed out to those that have it (VBE): forward only, on a CPU."""
    rank, each = dist.get_rank(), batches_of_their_own()
    reference = sequences()
    fresh = sharded(copy.deepcopy(reference), sequence_sharder(EmbOptimType.EXACT_SGD), SEQUENCES)
    expected = []
    for batch in each:
        names, inverse = batch.inverse_indices()
        rows = dict(zip(names, inverse.tolist(), strict=True))
        bags = {name: jagged.to_dense() for name, jagged in vectors(reference, batch).items()}
        expected.append(
            {
                name: torch.cat([own[row] for row in rows[name.split("@")[0]]])
                for name, own in bags.items()
            }
        )
    with pytest.raises(ConversionError, match=r"\(VBE\) have no gradients on a CPU"):
        vectors(fresh, each[rank])
    with torch.no_grad():
        found = values(vectors(fresh, each[rank]))
    assert set(found) == set(expected[rank])
    for name, value in found.items():
        torch.testing.assert_close(value, expected[rank][name].detach(), **NEAR)
