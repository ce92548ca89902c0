"""TorchRec's collections after `convert`: its own, with the product tables, are the oracle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mlet
from mlet.engine import FactoredGradient, look_up, use_backend
from mlet.nn import jagged, stacked_tables, two_layer

pytest.importorskip("torchrec", reason="make test installs the extra 'clients'")
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from mlet.nn.torchrec_collections import (
    TwoLayerEmbeddingBagCollection,
    TwoLayerEmbeddingCollection,
)

SUM, MEAN = PoolingType.SUM, PoolingType.MEAN
NEAR = {"rtol": 1e-4, "atol": 2e-5}
#: By the CPU's kernels, the engine's reference, and torch's operations, as where they are traced.
PATHS = ["cpu", "torch", "traced"]


@contextmanager
def way_of(path: str) -> Iterator[None]:
    if path != "traced":
        with use_backend(path):
            yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jagged, "engine_serves", lambda *tensors: False)
        patch.setattr(two_layer, "engine_serves", lambda *tensors: False)
        yield


def bags(name: str, n: int, dim: int, *features: str, pooling: Any = SUM) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=n,
        embedding_dim=dim,
        feature_names=list(features),
        pooling=pooling,
    )


def rows(name: str, n: int, *features: str) -> EmbeddingConfig:
    return EmbeddingConfig(
        name=name, num_embeddings=n, embedding_dim=4, feature_names=list(features)
    )


def batch_of(keys: list[str], rows: int, seed: int, dtype: Any = torch.int64) -> KeyedJaggedTensor:
    """Bags of at most three ids below 7, and weights."""
    made = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, (len(keys) * rows,), generator=made)
    if seed % 4 == 0:
        lengths = torch.ones_like(lengths)
    count = int(lengths.sum())
    values = torch.randint(7, (count,), generator=made).to(dtype)
    return KeyedJaggedTensor.from_lengths_sync(
        keys, values, lengths, torch.rand(count, generator=made)
    )


def values_of(out: Any) -> Tensor:
    if isinstance(out, KeyedTensor):
        return out.values()
    return torch.cat([each.values() for each in out.values()])


def factor_grads(collection: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The gradients of a table's factors, by table."""
    found = {}
    for stack in collection.tables.stacks():
        inner = stack.inner.grad
        inner = inner.to_dense() if inner.is_sparse else inner
        for place, (name, start) in enumerate(stack.starts.items()):
            own = inner[start : start + stack.sizes[name]]
            found[name] = own, stack.projection.grad[place]
    return found


def check_like(plain: nn.Module, path: str, batch: KeyedJaggedTensor, *, sparse: bool) -> None:
    """Outputs, and gradients of both factors, are those of TorchRec's own collection."""
    plain.zero_grad()
    converted: Any = copy.deepcopy(plain)
    for layer in [part for part in converted.modules() if hasattr(part, "sparse")]:
        layer.sparse = sparse
    converted = mlet.convert(converted, 9)
    with way_of(path):
        found = converted(batch)
    expected = plain(batch)
    assert list(found.keys()) == list(expected.keys())
    if isinstance(expected, KeyedTensor):
        assert found.length_per_key() == expected.length_per_key()
    else:
        for name, one in expected.items():
            torch.testing.assert_close(found[name].lengths(), one.lengths())
            torch.testing.assert_close(found[name].weights_or_none(), one.weights_or_none())
    assert values_of(found).dtype == torch.float32
    torch.testing.assert_close(values_of(found), values_of(expected), **NEAR)
    upstream = torch.randn(values_of(expected).shape)
    with way_of(path):
        values_of(found).backward(upstream)
    values_of(expected).backward(upstream)
    grads, holder = factor_grads(converted), getattr(plain, converted.holder)
    assert list(grads)
    assert set(grads) == set(holder)
    for name, (inner, projection) in grads.items():
        factors, grad = converted.tables.factors(name), holder[name].weight.grad
        torch.testing.assert_close(inner, grad @ factors.projection.T, **NEAR)
        torch.testing.assert_close(projection, factors.inner.T @ grad, **NEAR)


@st.composite
def pooled_collections(draw: Any) -> EmbeddingBagCollection:
    weighted = draw(st.booleans())
    features = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True)
    tables = [
        bags(
            f"t {place}",
            draw(st.integers(7, 40)),
            draw(st.sampled_from([2, 4])),
            *draw(features),
            pooling=SUM if weighted else draw(st.sampled_from([SUM, MEAN])),
        )
        for place in range(draw(st.integers(1, 4)))
    ]
    return EmbeddingBagCollection(tables=tables, is_weighted=weighted)


@settings(max_examples=60, deadline=None)
@given(
    plain=pooled_collections(),
    keys=st.permutations(list("abcdz")),
    rows=st.integers(1, 6),
    seed=st.integers(0, 999),
    path=st.sampled_from(PATHS),
    sparse=st.booleans(),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_pooled_like_torchrecs(
    plain: Any, keys: list[str], rows: int, seed: int, path: str, sparse: bool, dtype: Any
) -> None:
    check_like(plain, path, batch_of(keys, rows, seed, dtype), sparse=sparse and path != "traced")


@settings(max_examples=25, deadline=None)
@given(
    tables=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, unique=True), min_size=1),
    need_indices=st.booleans(),
    seed=st.integers(0, 999),
    path=st.sampled_from(PATHS),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_unpooled_like_torchrecs(
    tables: list[list[str]], need_indices: bool, seed: int, path: str, dtype: Any
) -> None:
    configs = [rows(f"t{place}", 7 + 5 * place, *own) for place, own in enumerate(tables)]
    plain = EmbeddingCollection(tables=configs, need_indices=need_indices)
    check_like(plain, path, batch_of(list("dcba"), 3, seed, dtype), sparse=seed % 2 > 0)


@pytest.mark.parametrize("path", PATHS)
def test_rows_that_are_there_once_and_handed_out_again(path: str) -> None:
    """Of keys with batches of their own, and of none at all."""
    plain = EmbeddingBagCollection(tables=[bags("t", 9, 4, "a", "b"), bags("s", 8, 4, "b")])
    inverse = torch.tensor([[0, 1, 1, 0], [2, 0, 1, 2]])
    batch = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor([1, 2, 3, 4, 5, 6]),
        lengths=torch.tensor([2, 0, 1, 1, 2]),
        stride_per_key_per_rank=[[2], [3]],
        inverse_indices=(["a", "b"], inverse),
    )
    check_like(plain, path, batch, sparse=False)
    nothing = KeyedJaggedTensor(
        keys=["a", "b"], values=torch.zeros(0).long(), lengths=torch.zeros(8).long()
    )
    check_like(plain, path, nothing, sparse=False)


def test_one_lookup_for_all_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def counted(table: Any, projection: Any, lookups: Any, stack: Any, **options: Any) -> Tensor:
        calls.append(stack.names)
        return look_up(table, projection, lookups, stack, **options)

    monkeypatch.setattr(stacked_tables, "look_up", counted)
    mixed = [bags("t0", 9, 4, "a"), bags("t1", 9, 4, "b", pooling=MEAN), bags("t2", 9, 4, "a")]
    batch = batch_of(list("ab"), 3, 1)
    mlet.convert(EmbeddingBagCollection(tables=mixed), 9)(batch)
    assert calls == [("t0", "t1", "t2")]
    uneven = [bags("t0", 9, 4, "a"), bags("t1", 9, 4, "a", "b")]
    mlet.convert(EmbeddingBagCollection(tables=uneven, is_weighted=True), 9)(batch)
    unpooled = [rows("t0", 9, "a"), rows("t1", 9, "a", "b")]
    mlet.convert(EmbeddingCollection(tables=unpooled), 9)(batch)
    assert calls[1:] == [("t0", "t1")] * 2


def test_back_to_torchrecs_own() -> None:
    """Names of a state, configurations, frozen tables, attributes, copies, all kinds of states."""
    plain = EmbeddingBagCollection(
        tables=[bags("user", 20, 4, "a"), bags("item", 30, 4, "b", "a", pooling=MEAN)]
    ).eval()
    plain.embedding_bags["item"].weight.requires_grad_(False)
    plain.note = "mine"
    batch, expected = batch_of(["a", "b"], 4, 3), None
    expected = plain(batch).values()
    model: Any = nn.ModuleDict({"sparse": copy.deepcopy(plain), "again": nn.Identity()})
    model["again"] = model["sparse"]
    configs = model["sparse"].embedding_bag_configs()
    mlet.convert(model, {"*user": 8, "*item": 12})
    made = model["sparse"]
    assert type(made) is TwoLayerEmbeddingBagCollection is type(model["again"])
    assert made is model["again"]
    assert isinstance(made, EmbeddingBagCollection)
    assert not made.training
    assert made.note == "mine"
    assert not made.is_weighted()
    assert made.embedding_bag_configs() == configs
    names = [table.name for table in mlet.summary(model).tables]
    assert names == ["sparse.embedding_bags.user", "sparse.embedding_bags.item"]
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    assert shapes == {
        "embedding_bags.user.inner": (20, 8),
        "embedding_bags.user.projection": (8, 4),
        "embedding_bags.item.inner": (30, 12),
        "embedding_bags.item.projection": (12, 4),
    }
    frozen = [not p.requires_grad for p in made.parameters()]
    assert frozen == [False, False, True, True]
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(other(batch).values(), expected, **NEAR)
    # States: of its own kind, as layers by themselves had them, and of the plain collection.
    fresh = mlet.convert(EmbeddingBagCollection(tables=plain.embedding_bag_configs()), 12)
    with pytest.raises(RuntimeError, match=r"size mismatch for embedding_bags.user.inner"):
        fresh.load_state_dict(made.state_dict())
    fresh.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fresh(batch).values(), expected, **NEAR)
    missing, unexpected = fresh.load_state_dict({"embedding_bags.no.inner": None}, strict=False)
    assert "embedding_bags.user.inner" in missing
    assert unexpected == ["embedding_bags.no.inner"]
    wrong = {**plain.state_dict(), "embedding_bags.user.weight": torch.zeros(3, 4)}
    with pytest.raises(RuntimeError, match=r"size mismatch for embedding_bags.user.weight"):
        fresh.load_state_dict(wrong)
    plain.load_state_dict(mlet.collapse_state_dict(made.state_dict()), strict=True)
    mlet.collapse(model)
    back = model["sparse"]
    assert type(back) is EmbeddingBagCollection
    assert back is model["again"]
    assert back.note == "mine"
    assert vars(back).keys() == vars(plain).keys()
    assert [p.requires_grad for p in back.parameters()] == [True, False]
    assert back.embedding_bags["item"].mode == "mean"
    assert not back.embedding_bags["item"].training
    plain.load_state_dict(back.state_dict(), strict=True)
    torch.testing.assert_close(plain(batch).values(), expected, **NEAR)
    torch.testing.assert_close(back(batch).values(), expected, **NEAR)


@pytest.mark.parametrize("pooled", [True, False])
def test_some_tables_by_themselves(pooled: bool) -> None:
    """What is not to be converted stays, what has something of its own is a layer by itself."""
    configs: list[Any] = [
        bags(f"t{n}", n, 4, "a") if pooled else rows(f"t{n}", n, "a") for n in (10, 20, 30, 40)
    ]
    kind = EmbeddingBagCollection if pooled else EmbeddingCollection
    plain = kind(tables=configs)
    batch = batch_of(["a"], 3, 5)
    converted: Any = copy.deepcopy(plain)
    held: Any = converted.embedding_bags if pooled else converted.embeddings
    held["t20"].register_forward_hook(lambda *_: None)
    mlet.convert(converted, 9, min_rows=20)
    assert [stack.stack.names for stack in converted.tables.stacks()] == [("t30", "t40")]
    assert isinstance(converted.tables.t20, mlet.EmbeddingBag if pooled else mlet.Embedding)
    assert converted.tables.t10 is held["t10"]
    torch.testing.assert_close(values_of(converted(batch)), values_of(plain(batch)), **NEAR)
    converted.reset_parameters()
    assert not torch.allclose(values_of(converted(batch)), values_of(plain(batch)))
    state = converted.state_dict()
    converted.load_state_dict(state)
    trained = values_of(converted(batch))
    back = mlet.collapse(converted)
    assert type(back) is kind
    plain.load_state_dict(back.state_dict(), strict=True)
    torch.testing.assert_close(values_of(plain(batch)), trained, **NEAR)


def changed(change: str) -> EmbeddingBagCollection:
    """A collection that is not what TorchRec makes."""
    weighted = change == "weighted means"
    pooling = MEAN if weighted else SUM
    made = EmbeddingBagCollection([bags("t", 9, 4, "a", pooling=pooling)], is_weighted=weighted)
    if change == "forward":
        made.forward = made.forward
    elif change == "a part":
        made.extra = nn.Linear(1, 1)
    elif change == "half":
        made.embedding_bags["t"].half()
    elif change == "subclass":
        made.__class__ = type("Own", (EmbeddingBagCollection,), {})
    elif change == "tables":
        made = EmbeddingBagCollection([bags("tables", 9, 4, "a")])
    return made


@pytest.mark.parametrize(
    "change", ["forward", "a part", "half", "subclass", "tables", "weighted means"]
)
def test_collections_of_which_nothing_is_together(change: str) -> None:
    model = nn.ModuleDict({"c": changed(change)})
    before = model["c"]
    mlet.convert(model, 9)
    assert model["c"] is before
    assert [type(layer) for layer in before.embedding_bags.values()] == [mlet.EmbeddingBag]


def test_before_there_are_values() -> None:
    """A collection on the meta device is converted as it will be, whole."""
    configs = [bags("t", 9, 4, "a"), bags("s", 8, 4, "b")]
    with torch.device("meta"):
        made: Any = mlet.convert(EmbeddingBagCollection(tables=configs), 9)
    assert all(parameter.is_meta for parameter in made.parameters())
    assert [stack.stack.names for stack in made.tables.stacks()] == [("t", "s")]
    made.to_empty(device="cpu").reset_parameters()
    plain = EmbeddingBagCollection(tables=configs)
    plain.load_state_dict(mlet.collapse_state_dict(made.state_dict()), strict=True)
    batch = batch_of(["a", "b"], 3, 1)
    torch.testing.assert_close(made(batch).values(), plain(batch).values(), **NEAR)


def test_no_rows_and_wrong_features() -> None:
    made = mlet.convert(EmbeddingBagCollection([bags("t", 9, 4, "a"), bags("s", 7, 4, "b")]), 9)
    lengths = torch.tensor([1, 1])
    batch = KeyedJaggedTensor.from_lengths_sync(["b", "a"], torch.tensor([7, 7]), lengths)
    nobody = torch.zeros(0).long()
    no_rows = KeyedJaggedTensor(keys=["a", "b"], values=nobody, lengths=nobody)
    assert made(no_rows).values().shape == (0, 8)
    with pytest.raises(IndexError, match="field 's': id 7 is outside its table of 7 categories"):
        made(batch)
    with pytest.raises(KeyError, match="b"):
        made(KeyedJaggedTensor.from_lengths_sync(["a"], torch.tensor([7]), lengths[:1]))
    floats = KeyedJaggedTensor.from_lengths_sync(["a", "b"], torch.tensor([1.0, 2.0]), lengths)
    with pytest.raises(TypeError, match="must be int32 or int64, got torch"):
        made(floats)


def test_in_place_inside_what_is_compiled() -> None:
    pooled = EmbeddingBagCollection([bags("t", 9, 4, "a", "b")])
    single = EmbeddingCollection([rows("t", 9, "a"), rows("s", 8, "b")])
    batch = batch_of(["a", "b"], 3, 2)
    for made in (pooled, single):
        before, expected = type(made), values_of(made(batch))
        compiled = torch.compile(made, backend="eager")
        values_of(compiled(batch))
        assert mlet.convert(made, 9) is made
        assert isinstance(made, TwoLayerEmbeddingBagCollection | TwoLayerEmbeddingCollection)
        torch.testing.assert_close(values_of(compiled(batch)), expected, **NEAR)
        values_of(compiled(batch)).sum().backward()
        assert all(parameter.grad is not None for parameter in made.parameters())
        optimizer = mlet.optim.fused(torch.optim.SGD, made, lr=0.1)
        optimizer.zero_grad()
        values_of(compiled(batch)).sum().backward()
        assert all(isinstance(s.inner.grad, FactoredGradient) for s in made.tables.stacks())
        assert mlet.collapse(compiled) is made
        assert type(made) is before
        torch.testing.assert_close(values_of(made(batch)), expected, **NEAR)


def test_indices_are_torchrecs() -> None:
    made = mlet.convert(EmbeddingCollection([rows("t", 9, "a")], need_indices=True), 9)
    out = made(batch_of(["a"], 3, 1))["a"]
    assert isinstance(out, JaggedTensor)
    assert made.embedding_names_by_table() == [["a"]]
