"""Sharded two-layer collections: real processes, with the unsharded model on the joined batch as
the oracle."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint

import mlet
from mlet.errors import ConversionError

pytest.importorskip("torchrec", reason="make test installs the extra 'clients'")
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from sequence_worker import sequence_config, sequence_configs, sequence_sharder
from sharded_models import (
    NEAR,
    TIMEOUT,
    built,
    config,
    configs,
    processes,
    run,
    sharded,
    two_layer_sharder,
)
from sharded_worker import AlsoRowWise, resumes, trains_like_one, two
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from mlet.distributed import TwoLayerPerfEstimator
from mlet.distributed.forms import projects_on_shards


def launch(task: Callable[[Path], None], size: int, folder: Path, seconds: int = 240) -> list[int]:
    """Exit codes of that many processes, none of which is left behind."""
    context = multiprocessing.get_context("spawn")
    started: list[Any] = [
        context.Process(target=run, args=(task, rank, size, folder)) for rank in range(size)
    ]
    deadline = time.monotonic() + seconds
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in started]
    finally:
        for process in started:
            if process.exitcode is None:
                process.kill()
                process.join()


def errors(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("error*.txt")))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes left, which trained like one."""
    folder = tmp_path_factory.mktemp("four")
    codes = launch(trains_like_one, 4, folder)
    assert codes == [0] * 4, errors(folder)
    return folder


@pytest.mark.slow
def test_the_collapsed_state_is_the_plain_models(four: Path) -> None:
    """Saved by four processes, loaded by one that has TorchRec's own unsharded collection."""
    plain = nn.ModuleDict({"sparse": EmbeddingBagCollection(tables=configs())})
    state = plain.state_dict()
    checkpoint.load({"model": state}, checkpoint_id=four / "collapsed")
    plain.load_state_dict(state, strict=True)
    expected = mlet.collapse_state_dict(torch.load(four / "reference.pt"))
    assert set(state) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(plain.state_dict()[name], value, **NEAR)


@pytest.mark.slow
def test_collapsed_sequences_are_the_plain_models(four: Path, tmp_path: Path) -> None:
    """Of the sharded model, and of the folder that it was saved in before."""
    mlet.collapse_state_dict(four / "sequences", tmp_path / "plain")
    expected = mlet.collapse_state_dict(torch.load(four / "sequences.pt"))
    for folder in (four / "collapsed-sequences", tmp_path / "plain"):
        plain = nn.ModuleDict({"sparse": EmbeddingCollection(tables=sequence_configs())})
        state = plain.state_dict()
        checkpoint.load({"model": state}, checkpoint_id=folder)
        plain.load_state_dict(state, strict=True)
        assert set(state) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(plain.state_dict()[name], value, **NEAR)


@pytest.mark.slow
def test_a_checkpoint_folder_is_collapsed(four: Path, tmp_path: Path) -> None:
    """Without the model; a shard at a time, and what was kept of the factors is left out."""
    before = torch.distributed.checkpoint.FileSystemReader(four / "checkpoint").read_metadata()
    mlet.collapse_state_dict(four / "checkpoint", tmp_path / "plain")
    metadata = torch.distributed.checkpoint.FileSystemReader(tmp_path / "plain").read_metadata()
    assert any("inner" in name for name in before.state_dict_metadata)
    assert {name.rpartition(".")[2] for name in metadata.state_dict_metadata} == {"weight"}
    rows: Any = metadata.state_dict_metadata["model.sparse.embedding_bags.v.weight"]
    assert [tuple(chunk.sizes) for chunk in rows.chunks] == [(8, 4), (8, 4), (8, 4), (7, 4)]
    # Of columns in four parts, too, as many numbers as one has are in memory at a time.
    rows = metadata.state_dict_metadata["model.sparse.embedding_bags.p.weight"]
    assert [tuple(chunk.sizes) for chunk in rows.chunks] == [(9, 4), (9, 4), (9, 4), (6, 4)]
    plain = nn.ModuleDict({"sparse": EmbeddingBagCollection(tables=configs())})
    state = plain.state_dict()
    checkpoint.load({"model": state}, checkpoint_id=tmp_path / "plain")
    plain.load_state_dict(state, strict=True)
    for name, value in mlet.collapse_state_dict(torch.load(four / "reference.pt")).items():
        torch.testing.assert_close(plain.state_dict()[name], value, **NEAR)
    with pytest.raises(ConversionError, match="there is something in it already"):
        mlet.collapse_state_dict(four / "checkpoint", tmp_path / "plain")
    with pytest.raises(ConversionError, match="nothing to collapse"):
        mlet.collapse_state_dict(tmp_path / "plain", tmp_path / "again")
    with pytest.raises(ConversionError, match=r"no checkpoint of torch.distributed.checkpoint"):
        mlet.collapse_state_dict(tmp_path, tmp_path / "again")
    with pytest.raises(ConversionError, match="name one to be written"):
        mlet.collapse_state_dict(tmp_path)  # type: ignore[call-overload]


@pytest.mark.slow
def test_what_else_a_checkpoint_holds_is_copied(tmp_path: Path) -> None:
    model = nn.ModuleDict({"table": mlet.Embedding(20, 3, inner_dim=8), "mlp": nn.Linear(3, 1)})
    checkpoint.save({"model": model.state_dict(), "step": 7}, checkpoint_id=tmp_path / "two")
    mlet.collapse_state_dict(str(tmp_path / "two"), str(tmp_path / "one"))
    plain = nn.ModuleDict({"table": nn.Embedding(20, 3), "mlp": nn.Linear(3, 1)})
    state = {"model": plain.state_dict(), "step": 0}
    checkpoint.load(state, checkpoint_id=tmp_path / "one")
    assert state["step"] == 7
    for name, value in mlet.collapse_state_dict(model.state_dict()).items():
        torch.testing.assert_close(state["model"][name], value, rtol=0, atol=0)


@pytest.mark.slow
def test_one_process_goes_on_with_what_four_saved(four: Path, tmp_path: Path) -> None:
    with processes(0, 1, tmp_path / "store"):
        resumes(four)


@pytest.mark.slow
def test_two_processes_go_on_with_it_and_one_is_killed(four: Path) -> None:
    codes = launch(two, 2, four)
    assert codes == [0, -9], errors(four)
    seconds, said = (four / "ended.txt").read_text().split("\n", 1)
    assert float(seconds) < TIMEOUT + 5
    assert said
    tables = {"u": (40, 16), "v": (31, 16), "w": (30, 16)}
    state = {f"sparse.embedding_bags.{n}.inner": torch.empty(s) for n, s in tables.items()}
    checkpoint.load({"model": state}, checkpoint_id=four / "last")
    assert all(value.isfinite().all() for value in state.values())


def refused(model: nn.Module, kinds: dict[str, str], rule: Any = None, **more: Any) -> None:
    sharder = two_layer_sharder(rule or EmbOptimType.EXACT_SGD)
    sharder.fused_params.update(more)
    sharded(model, sharder, kinds)


def one_table(dim: int = 4, inner_dim: int = 8) -> Any:
    plain = EmbeddingBagCollection(tables=[config("t", 9, dim, "a")])
    return mlet.convert(nn.ModuleDict({"sparse": plain}), inner_dim)


def test_refusals(tmp_path: Path) -> None:
    kinds = {"t": "table_wise"}
    with processes(0, 1, tmp_path / "store"):
        with pytest.raises(ConversionError, match=r"'t'.* 10 wide and FBGEMM takes multiples of 4"):
            refused(one_table(inner_dim=10), kinds)
        with pytest.raises(ConversionError, match="ADAM has no rule"):
            refused(one_table(), kinds, EmbOptimType.ADAM)
        with pytest.raises(ConversionError, match=r"weight_decay=0.1 concerns rows"):
            refused(one_table(), kinds, weight_decay=0.1)
        with pytest.raises(ConversionError, match=r"'t'.*: it is frozen"):
            refused(one_table().requires_grad_(False), kinds)
        with pytest.raises(ConversionError, match=r"'t'.*float32 tables, not torch.float64"):
            refused(one_table().double(), kinds)
        with pytest.raises(RuntimeError, match="No available sharding type"):
            refused(one_table(), {"t": "data_parallel"})
        rowwise = EmbOptimType.EXACT_ROWWISE_ADAGRAD
        with pytest.raises(RuntimeError, match="No available sharding type"):
            refused(one_table(), {"t": "column_wise"}, rowwise)
        by_columns = planned(one_table(), two_layer_sharder(), "column_wise", 4)
        with pytest.raises(ConversionError, match=r"'t': row-wise Adagrad keeps .* 2 shares"):
            by_plan(one_table(), two_layer_sharder(rowwise), by_columns)
        for shard in by_columns.plan["sparse"]["t"].sharding_spec.shards:
            shard.shard_sizes[1] = 6
        with pytest.raises(ConversionError, match=r"'t'.* 6 wide .* the plan's shares of columns"):
            by_plan(one_table(), two_layer_sharder(), by_columns)
        narrow = sharded(one_table(dim=3), two_layer_sharder(), kinds)
        with pytest.raises(ConversionError, match=r"'t' of .* is 3 wide when it is collapsed"):
            mlet.collapse(narrow)
        with pytest.raises(ConversionError, match=r"'.*sparse' has been sharded by a plan"):
            mlet.convert(narrow, 8)
        with pytest.raises(ConversionError, match="are not resharded while they train"):
            narrow.module["sparse"].update_shards({}, None, None)
        with pytest.raises(ConversionError, match="are not resharded while they train"):
            narrow.reshard({"sparse": (0.0, {"t": None})}, "sparse")


def planned(model: Any, sharder: Any, kind: str, share: int) -> Any:
    """By the planner, of the only table."""
    constraints = {"t": ParameterConstraints(sharding_types=[kind], min_partition=share)}
    topology = Topology(1, "cpu", local_world_size=1)
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    return planner.plan(model, [sharder])


def by_plan(model: Any, sharder: Any, plan: Any) -> Any:
    cpu = torch.device("cpu")
    return DistributedModelParallel(model, device=cpu, plan=plan, sharders=[sharder])


def one_sequence(dim: int = 4, inner_dim: int = 8) -> Any:
    plain = EmbeddingCollection(tables=[sequence_config("t", 9, "a", dim=dim)])
    return mlet.convert(nn.ModuleDict({"sparse": plain}), inner_dim)


def test_refusals_of_sequences(tmp_path: Path) -> None:
    sgd = sequence_sharder(EmbOptimType.EXACT_SGD)
    with processes(0, 1, tmp_path / "store"):
        for kind in ("column_wise", "data_parallel"):
            with pytest.raises(RuntimeError, match="No available sharding type"):
                planned(one_sequence(), sgd, kind, 4)
        bags = planned(one_table(), two_layer_sharder(), "column_wise", 4)
        with pytest.raises(ConversionError, match=r"'t'.* column_wise, only table_wise, row_wise"):
            by_plan(one_sequence(), sgd, bags)
        rows = planned(one_sequence(inner_dim=10), sgd, "row_wise", 4)
        with pytest.raises(ConversionError, match=r"'t'.* 10 wide and FBGEMM takes multiples of 4"):
            by_plan(one_sequence(inner_dim=10), sgd, rows)
        narrow = by_plan(one_sequence(dim=3), sgd, planned(one_sequence(dim=3), sgd, "row_wise", 4))
        with pytest.raises(ConversionError, match=r"'t' of .* is 3 wide when it is collapsed"):
            mlet.collapse(narrow)
        with pytest.raises(ConversionError, match=r"'.*sparse' has been sharded by a plan"):
            mlet.convert(narrow, 8)
        with pytest.raises(ConversionError, match="are not resharded while they train"):
            narrow.reshard({"sparse": (0.0, {"t": None})}, "sparse")


def test_whichever_form_sends_less() -> None:
    """P d-wide sums or k numbers; and rows that are whole leave d wide, however narrow they are."""
    assert projects_on_shards(64, 16, 1)
    assert projects_on_shards(64, 16, 2)
    assert projects_on_shards(64, 16, 4)
    assert not projects_on_shards(64, 16, 5)
    assert not projects_on_shards(64, 64, 2)
    assert projects_on_shards(8, 16, 1)


def test_a_planner_counts_rows_k_wide() -> None:
    found = two_layer_sharder().shardable_parameters(built()["sparse"])
    assert {name: tuple(one.shape) for name, one in found.items()} == {
        "u": (40, 16),
        "v": (31, 16),
        "w": (30, 24),
        "x": (34, 16),
        "p": (33, 32),
        "q": (32, 16),
        "g": (35, 16),
        "h": (36, 16),
    }
    assert all(one.is_meta for one in found.values())


@pytest.mark.parametrize("pools", [True, False])
def test_a_planner_estimates_rows_k_wide_and_exchange_d_wide(pools: bool) -> None:
    """Of TorchRec's own collections of either width it has what each is right for."""
    topology = Topology(4, "cpu", local_world_size=2)

    def shards(model: Any, sharder: Any, estimator: Any) -> dict[tuple[str, int], Any]:
        enumerator = EmbeddingEnumerator(
            topology, 64, estimator=[estimator(topology), EmbeddingStorageEstimator(topology)]
        )
        options = enumerator.enumerate(nn.ModuleDict({"sparse": model}), [sharder])
        return {
            (option.sharding_type, place): shard
            for option in options
            for place, shard in enumerate(option.shards)
            if option.sharding_type in ("table_wise", "row_wise")
        }

    def collection(dim: int) -> Any:
        if pools:
            return EmbeddingBagCollection(tables=[config("t", 4000, dim, "a", "b")])
        return EmbeddingCollection(tables=[sequence_config("t", 4000, "a", "b", dim=dim)])

    def plain(dim: int) -> dict[tuple[str, int], Any]:
        theirs = AlsoRowWise() if pools else EmbeddingCollectionSharder()
        return shards(collection(dim), theirs, EmbeddingPerfEstimator)

    inside, outside = plain(32), plain(4)
    sgd = EmbOptimType.EXACT_SGD
    sharder = two_layer_sharder(sgd) if pools else sequence_sharder(sgd)
    found = shards(mlet.convert(collection(4), 32), sharder, TwoLayerPerfEstimator)
    assert len(found) == 5
    assert set(found) == set(inside) == set(outside)
    for key, shard in found.items():
        assert shard.size == inside[key].size
        assert shard.storage == inside[key].storage
        assert shard.perf.fwd_compute == inside[key].perf.fwd_compute
        assert shard.perf.bwd_compute == inside[key].perf.bwd_compute
        assert 0 < shard.perf.fwd_comms == outside[key].perf.fwd_comms < inside[key].perf.fwd_comms
        assert shard.perf.bwd_comms == outside[key].perf.bwd_comms


def test_a_planner_estimates_columns_as_wide_as_they_are_exchanged() -> None:
    """Shares of 8 of 32 columns: four sums of 4, or, where those were of 12, four parts of 8."""
    topology = Topology(4, "cpu", local_world_size=2)
    for dim, exchanged in ((4, 4), (12, 8)):
        plain = EmbeddingBagCollection(tables=[config("t", 4000, dim, "a", "b")])
        like = EmbeddingBagCollection(tables=[config("t", 4000, exchanged * 4, "a", "b")])
        found = []
        for model, sharder, estimator, share in (
            (mlet.convert(plain, 32), two_layer_sharder(), TwoLayerPerfEstimator, 8),
            (like, AlsoRowWise(), EmbeddingPerfEstimator, exchanged),
        ):
            limits = {
                "t": ParameterConstraints(
                    sharding_types=["column_wise", "grid_shard"], min_partition=share
                )
            }
            enumerator = EmbeddingEnumerator(
                topology,
                64,
                constraints=limits,
                estimator=[
                    estimator(topology, limits),
                    EmbeddingStorageEstimator(topology, limits),
                ],
            )
            options = enumerator.enumerate(nn.ModuleDict({"sparse": model}), [sharder])
            shards = {
                (option.sharding_type, place): shard
                for option in options
                for place, shard in enumerate(option.shards)
            }
            found.append(shards)
        ours, theirs = found
        assert len(ours) == 4 + 4 * 2
        assert set(ours) == set(theirs)
        for key, shard in ours.items():
            assert 0 < shard.perf.fwd_comms == theirs[key].perf.fwd_comms
            assert shard.perf.bwd_comms == theirs[key].perf.bwd_comms
            assert shard.size[1] == 8


def test_torchrec_is_imported_where_it_is_asked_for() -> None:
    code = "import sys, mlet, mlet.surgery, mlet.nn; assert 'torchrec' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
