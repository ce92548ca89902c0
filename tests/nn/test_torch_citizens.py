"""The layers in torch's own machinery: compile, export, autocast, distributed wrappers, …"""

from __future__ import annotations

import copy
import io
import os
import pickle
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

import mlet
from mlet.nn.two_layer import TwoLayerTable

#: For the other process.
PATIENCE = timedelta(seconds=60)
IDS = torch.tensor([[1, 2, 2], [0, 5, 1]])

LAYERS: dict[str, Callable[[], TwoLayerTable]] = {
    "plain": lambda: mlet.Embedding(10, 3, inner_dim=8),
    "padding": lambda: mlet.Embedding(10, 3, 0, inner_dim=8),
    "max_norm": lambda: mlet.Embedding(10, 3, max_norm=0.5, inner_dim=8),
    "by frequency": lambda: mlet.Embedding(10, 3, scale_grad_by_freq=True, inner_dim=8),
    "sparse": lambda: mlet.Embedding(10, 3, sparse=True, inner_dim=8),
    "sum": lambda: mlet.EmbeddingBag(10, 3, mode="sum", inner_dim=8),
    "mean, padding": lambda: mlet.EmbeddingBag(10, 3, mode="mean", padding_idx=1, inner_dim=8),
    "max": lambda: mlet.EmbeddingBag(10, 3, mode="max", inner_dim=8),
    "bag by frequency": lambda: mlet.EmbeddingBag(10, 3, scale_grad_by_freq=True, inner_dim=8),
    "bag max_norm": lambda: mlet.EmbeddingBag(10, 3, max_norm=0.5, mode="sum", inner_dim=8),
}

each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


def seeded(make: Callable[[], TwoLayerTable]) -> TwoLayerTable:
    torch.manual_seed(0)
    return make()


@each_layer
def test_compile_fullgraph(make: Callable[[], TwoLayerTable]) -> None:
    torch.compiler.reset()
    eager, layer = seeded(make), seeded(make)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = compiled(IDS)
    torch.testing.assert_close(out, eager(IDS))
    out.square().sum().backward()
    eager(IDS).square().sum().backward()
    torch.testing.assert_close(layer.inner.grad.to_dense(), eager.inner.grad.to_dense())
    torch.testing.assert_close(layer.projection.grad, eager.projection.grad)


@each_layer
def test_export(make: Callable[[], TwoLayerTable]) -> None:
    layer = seeded(make).eval()
    program = torch.export.export(layer, (IDS,))
    torch.testing.assert_close(program.module()(IDS), seeded(make)(IDS))


@each_layer
def test_deepcopy_pickle_and_state_dict(make: Callable[[], TwoLayerTable]) -> None:
    layer = seeded(make)
    expected = seeded(make)(IDS)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = make()
    loaded.load_state_dict(torch.load(file))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        torch.testing.assert_close(twin(IDS), expected)


@each_layer
def test_autocast_and_low_precision_give_torchs_dtypes(make: Callable[[], TwoLayerTable]) -> None:
    layer = seeded(make)
    plain = layer.collapse()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = layer(IDS), plain(IDS)
    assert out.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        out = copy.deepcopy(layer).to(dtype)(IDS)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.02)


@each_layer
def test_meta_device_and_materialisation(make: Callable[[], TwoLayerTable]) -> None:
    with torch.device("meta"):
        layer = make()
    assert layer.inner.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(IDS).isfinite().all()


def test_functional_call_and_per_sample_gradients() -> None:
    layer = seeded(LAYERS["plain"])
    state = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(state: dict[str, Tensor], ids: Tensor) -> Tensor:
        return torch.func.functional_call(layer, state, (ids,)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, IDS)
    layer(IDS).square().sum().backward()
    torch.testing.assert_close(grads["inner"].sum(0), layer.inner.grad)
    torch.testing.assert_close(grads["projection"].sum(0), layer.projection.grad)


def test_parametrizations_act_on_the_factors() -> None:
    class Doubled(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return 2 * value

    layer = seeded(LAYERS["plain"])
    before = layer(IDS).detach()
    parametrize.register_parametrization(layer, "projection", Doubled())
    torch.testing.assert_close(layer(IDS), 2 * before)
    torch.testing.assert_close(layer.collapse()(IDS), 2 * before)
    parametrize.remove_parametrizations(layer, "projection")
    torch.testing.assert_close(layer(IDS), 2 * before)


def test_tied_factors_train_together() -> None:
    first, second = seeded(LAYERS["plain"]), seeded(LAYERS["plain"])
    second.projection = first.projection
    both = nn.ModuleList([first, second])
    assert len(list(both.parameters())) == 3
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
    (first(IDS) + second(IDS)).sum().backward()
    optimizer.step()
    assert second.projection is first.projection


@pytest.mark.parametrize("kind", [mlet.Embedding, mlet.EmbeddingBag])
def test_from_pretrained(kind: type[mlet.Embedding | mlet.EmbeddingBag]) -> None:
    torch.manual_seed(0)
    table = torch.randn(9, 3)
    plain_kind = nn.Embedding if kind is mlet.Embedding else nn.EmbeddingBag
    options = {"padding_idx": 2, "sparse": True}
    layer = kind.from_pretrained(table, inner_dim=8, **options)
    plain = plain_kind.from_pretrained(table, **options)
    torch.testing.assert_close(layer(IDS), plain(IDS), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.weight, table, rtol=1e-5, atol=1e-6)
    assert not layer.inner.requires_grad
    assert kind.from_pretrained(table, freeze=False, inner_dim=8).projection.requires_grad
    with pytest.raises(ValueError, match="got shape"):
        kind.from_pretrained(table[0], inner_dim=8)
    with (
        pytest.warns(UserWarning, match="rank 2"),
        pytest.raises(ValueError, match="cannot hold the weights"),
    ):
        kind.from_pretrained(table, inner_dim=2)


OPTIONS = {
    "padding_idx": 2, "max_norm": 1.5, "norm_type": 1.0, "scale_grad_by_freq": True, "sparse": True,
    "mode": "sum", "include_last_offset": True,
}  # fmt: skip


@pytest.mark.parametrize("kind", [mlet.Embedding, mlet.EmbeddingBag])
@pytest.mark.parametrize("option", [*OPTIONS, "none"])
def test_every_option_passes_through_from_pretrained_and_collapse(
    kind: type[mlet.Embedding | mlet.EmbeddingBag], option: str
) -> None:
    if kind is mlet.Embedding and option in ("mode", "include_last_offset"):
        pytest.skip("an option of bags")
    chosen = {} if option == "none" else {option: OPTIONS[option]}
    plain_kind = nn.Embedding if kind is mlet.Embedding else nn.EmbeddingBag
    expected = plain_kind.from_pretrained(torch.randn(9, 3), **chosen)
    layer = kind.from_pretrained(torch.randn(9, 3), inner_dim=8, **chosen)
    plain = layer.train(option != "sparse").collapse()
    for name in OPTIONS.keys() & vars(expected).keys():
        assert getattr(layer, name) == getattr(plain, name) == getattr(expected, name), name
    assert plain.training is layer.training


def model(converted: bool, sparse: bool = False) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Embedding(10, 3, sparse=sparse), nn.Flatten(), nn.Linear(9, 1))
    return mlet.convert(plain, inner_dim=8) if converted else plain


def train_step(wrapped: nn.Module, ids: Tensor) -> None:
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    wrapped(ids).square().mean().backward()
    optimizer.step()


def worker(rank: int, port: int, folder: str, kind: str) -> None:
    """One of two processes: a step on its half of the batch, then collapse and save."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, timeout=PATIENCE)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store, timeout=PATIENCE)
    mine = IDS[rank : rank + 1]
    if kind != "fsdp2":
        sparse = kind == "ddp, sparse"
        wrapped = DistributedDataParallel(model(converted=True, sparse=sparse))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing sparse is dense
            train_step(wrapped, mine)
        if sparse:
            built = DistributedDataParallel(mlet.Embedding(10, 4, inner_dim=8, sparse=True))
            with pytest.warns(UserWarning, match=r"optim\.fused"):
                train_step(built, mine)
        collapsed = mlet.collapse(wrapped)
        assert not isinstance(collapsed, DistributedDataParallel)
        state = collapsed.state_dict()
    else:
        wrapped = model(converted=True)
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        fully_shard(wrapped, mesh=mesh)
        train_step(wrapped, mine)
        full = {name: value.full_tensor() for name, value in wrapped.state_dict().items()}
        state = mlet.collapse_state_dict(full)
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")
    store.set(f"rank {rank} is done", "")
    store.wait(["rank 0 is done", "rank 1 is done"])  # neither leaves while the other needs it
    # Nothing is freed: with torch 2.13, freeing a gloo group now and then waits for a thread of the
    # group that waits for the interpreter, for ever.
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "ddp, sparse", "fsdp2"])
def test_distributed_training_equals_one_process_and_collapses(kind: str, tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(worker, args=(store.port, str(tmp_path), kind), nprocs=2)
    single = model(converted=True)
    train_step(single, IDS)
    expected = mlet.collapse(single).state_dict()
    state = torch.load(tmp_path / "state.pt")
    model(converted=False).load_state_dict(state, strict=True)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", ["padding_idx", "scale_grad_by_freq", "none"])
def test_vmap_and_forward_mode_are_those_of_the_torch_layer(option: str) -> None:
    torch.manual_seed(0)
    options = {} if option == "none" else {option: {"padding_idx": 0}.get(option, True)}
    layer = mlet.Embedding(10, 4, inner_dim=8, dtype=torch.float64, **options)
    plain = layer.collapse()
    ids = torch.tensor([[1, 2, 2], [3, 0, 3]])

    def per_sample(module: nn.Module) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            return (torch.func.functional_call(module, parameters, (row,)) ** 2).sum()

        parameters = dict(module.named_parameters())
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, ids)

    mine, theirs = per_sample(layer), per_sample(plain)["weight"]
    torch.testing.assert_close(mine["inner"], theirs @ layer.projection.T)
    torch.testing.assert_close(mine["projection"], layer.inner.T @ theirs)

    def forward(inner: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"inner": inner}, (ids,))

    tangent = torch.randn_like(layer.inner)
    _, moved = torch.func.jvp(forward, (layer.inner,), (tangent,))
    torch.testing.assert_close(moved, (tangent @ layer.projection)[ids])


def test_the_meta_device_gives_shapes() -> None:
    ids = torch.zeros(3, dtype=torch.long, device="meta")
    assert mlet.Embedding(10, 4, inner_dim=8, device="meta")(ids).shape == (3, 4)
    bags = mlet.EmbeddingBag(10, 4, inner_dim=8, device="meta")
    assert bags(ids, torch.zeros(2, dtype=torch.long, device="meta")).shape == (2, 4)


@pytest.mark.parametrize("options", [{"mode": "max"}, {"mode": "sum", "scale_grad_by_freq": True}])
@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_bags_are_rows_or_lists(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="has to be 1-D or 2-D"):
        mlet.EmbeddingBag(10, 4, inner_dim=8, **options)(torch.ones(shape, dtype=torch.long))
