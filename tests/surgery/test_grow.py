"""Tables with more categories: known ids keep all they have, optimizers go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import mlet
from mlet.errors import ConversionError
from mlet.nn import Bags, Field, FieldEmbedding
from mlet.nn.compression import Hashing
from mlet.nn.rare_rows import RareRows
from mlet.optim import RowWiseAdagrad, fused

IDS = torch.tensor([[3, 0, 5], [9, 5, 1]])


class Tower(nn.Module):
    """Two tables, and a layer on them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = nn.Embedding(10, 4, padding_idx=0, dtype=dtype)
        self.item = nn.EmbeddingBag(12, 4, mode="sum", max_norm=5.0, dtype=dtype)
        self.top = nn.Linear(4, 1, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(self.user(ids).sum(1) * self.item(ids)).squeeze(1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor = IDS) -> None:
    optimizer.zero_grad()
    model(ids).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("converted", [False, True])
def test_known_ids_keep_what_they_have(converted: bool) -> None:
    model = Tower(torch.float64)
    if converted:
        mlet.convert(model, 16)
    model.item.requires_grad_(False)
    model.eval()
    seen: list[int] = []
    model.user.register_forward_hook(lambda *_: seen.append(1))
    layers, before = (model.user, model.item), model(IDS)
    table = model.user.weight.detach().clone()
    assert mlet.grow(model, {"user": 15, "item": 20}) is model
    assert torch.equal(model(IDS), before)
    assert (model.user, model.item) == layers
    assert len(seen) == 2, "its hook is still there"
    assert [layer.num_embeddings for layer in layers] == [15, 20]
    assert [p.requires_grad for p in model.item.parameters()] == [False] * (1 + converted)
    assert model.user.weight.dtype == torch.float64
    torch.testing.assert_close(model.user.weight[:10], table)
    mean, spread = table[1:].mean(0), model.user.weight[10:] - table[1:].mean(0)
    assert mean.abs().max() > 0.1, "padding's zeros are no part of it"
    bound = 15**-0.5 * (
        float(model.user.projection.detach().abs().sum(0).max()) if converted else 1
    )
    assert 0 < spread.abs().max() < bound
    model(torch.tensor([[14, 19 % 15]]))
    with pytest.raises(IndexError):
        model.user(torch.tensor([15]))
    mlet.grow(model, {"user": 15})  # nothing to do


@pytest.mark.parametrize("inner_dim", [None, 16])
def test_what_new_rows_start_as(inner_dim: int | None) -> None:
    def table() -> Any:
        torch.manual_seed(1)
        made: Any = nn.Embedding(6, 3, padding_idx=2)
        return mlet.convert(made, inner_dim) if inner_dim else made

    def rows(start: Any) -> Tensor:
        return mlet.grow(table(), 8, start=start, noise=0).weight[6:].detach()

    weight = table().weight.detach()
    close = torch.testing.assert_close
    close(rows(0), weight[:1].expand(2, 3))
    close(rows(-1), weight[5:].expand(2, 3))
    assert not rows("padding").any()
    vector, each = torch.tensor([1.0, -2.0, 0.5]), torch.arange(6.0).view(2, 3)
    close(rows(vector), vector.expand(2, 3))
    close(rows(each), each)
    for start, error in (
        (6, "no id of its 6"), ("most", "is not 'mean'"), (torch.ones(4), "4 wide, the table is 3"),
        (torch.ones(3, 3), "no vector, nor one for each"),
    ):  # fmt: skip
        with pytest.raises(ConversionError, match=error):
            rows(start)


FIELDS = [Field("u", 5, 4, 16), Field("v", 7, 4), Field("w", 6, 4, 16, multi_valued=True)]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_fields_of_one_matrix(dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    layer = FieldEmbedding(FIELDS, table_bias=True, table_dtype=dtype)
    optimizer = mlet.optim.FusedAdagrad(layer, lr=0.1)
    ids = torch.tensor([[1, 2], [4, 6]])
    bags = {"w": Bags(torch.tensor([5, 1, 2]), torch.tensor([0, 2, 3]))}
    layer(ids, bags).sum().backward()
    optimizer.step()
    before, states = layer(ids, bags).detach(), optimizer.state_dict()["state"]
    layer(ids, bags).sum().backward()  # what is left of it is forgotten
    mlet.grow(layer, {"u": 9, "v": 8}, optimizer=optimizer, start=0, noise=0)
    assert torch.equal(layer(ids, bags), before)
    assert [field.num_embeddings for field in layer.fields] == [9, 8, 6]
    for name, n in (("u", 5), ("v", 7)):
        assert torch.equal(
            layer.table(name)[n:], layer.table(name)[:1].expand(layer.table(name)[n:].shape)
        )
    (stack,) = (s for s in layer.stacks() if "u" in s.sizes)
    kept, state = states[0]["sum"], optimizer.state[stack.stacked]["sum"]
    assert torch.equal(state, torch.cat([kept[:5], torch.zeros(4, 16), kept[5:]]))
    before = stack.stacked.detach().clone()
    optimizer.step()
    assert torch.equal(stack.stacked, before), "the gradient of before is gone"
    with pytest.raises(IndexError, match=r"field 'u': id 9 is outside its table of 9"):
        layer(torch.tensor([[9, 2]]), {"w": Bags(torch.tensor([1]), torch.tensor([0, 1]))})
    state_dict = FieldEmbedding(layer.fields, table_bias=True, table_dtype=dtype).state_dict()
    assert {k: v.shape for k, v in layer.state_dict().items()} == {
        k: v.shape for k, v in state_dict.items()
    }
    assert mlet.collapse(layer).table("u").shape == (9, 4)


def rowwise(p: Any) -> torch.optim.Optimizer:
    return RowWiseAdagrad([q for q in p if q.dim() == 2], lr=0.1)


MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), 0.1, initial_accumulator_value=0.3),
    "adam": lambda m: torch.optim.AdamW(m.parameters(), 0.1, amsgrad=True),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 1e-4, momentum=0.9),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), 0.01, momentum=0.5, centered=True),
    "row-wise": lambda m: rowwise(m.parameters()),
    "fused adam": lambda m: fused(torch.optim.Adam, m, lr=0.1),
    "fused adagrad": lambda m: fused(
        torch.optim.Adagrad, m, m.named_parameters(), lr=0.1, initial_accumulator_value=0.3
    ),
    "fused row-wise": lambda m: fused(RowWiseAdagrad, m, lr=0.1),
    "fused sgd": lambda m: fused(torch.optim.SGD, m, lr=1e-4),
    "alone": lambda m: mlet.optim.FusedLazyAdam(m, lr=0.1),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_an_optimizer_goes_on_as_if_the_table_had_always_had_the_rows(kind: str) -> None:
    """Rows that no batch touches change neither themselves nor others."""
    torch.manual_seed(0)
    make = MAKERS[kind]
    large = mlet.convert(Tower(), 16)
    mlet.grow(large, {"user": 15, "item": 14}, noise=0.5)
    small = mlet.convert(Tower(), 16)
    with torch.no_grad():
        small.user.inner.copy_(large.user.inner[:10])
        small.item.inner.copy_(large.item.inner[:12])
        for one, other in ((small.user, large.user), (small.item, large.item)):
            one.projection.copy_(other.projection)
        small.top.load_state_dict(large.top.state_dict())
    ours, theirs = make(small), make(large)
    schedule = torch.optim.lr_scheduler.ExponentialLR(ours, 1.0)
    for _ in range(3):
        step(small, ours)
        step(large, theirs)
    mlet.grow(small, {"user": 15, "item": 14}, optimizer=ours)
    with torch.no_grad():
        small.user.inner[10:] = large.user.inner[10:]
        small.item.inner[12:] = large.item.inner[12:]
    for ids in (IDS, torch.tensor([[13, 12, 3]]), IDS):
        step(small, ours, ids)
        step(large, theirs, ids)
        schedule.step()
    for one, other in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    if kind not in ("row-wise", "alone"):
        mlet.optim.check_optimizers(small, ours)
    restored = make(copy.deepcopy(small)) if kind != "row-wise" else None
    if restored is not None:
        restored.load_state_dict(ours.state_dict())


def test_tied_tables_grow_together_and_nothing_else_that_is_tied() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(6, 3), "b": nn.Embedding(6, 3)})
    model["b"].weight = model["a"].weight
    with pytest.raises(ConversionError, match="'a' and 'b' have one weight"):
        mlet.grow(model, {"a": 9, "b": 8})
    mlet.grow(model, {"a": 9})
    assert model["a"].weight is model["b"].weight
    assert model["b"].num_embeddings == 9
    model["out"] = nn.Linear(3, 9, bias=False)
    model["out"].weight = model["a"].weight
    with pytest.raises(ConversionError, match="its weight is that of 'out', a Linear"):
        mlet.grow(model, {"b": 12})
    mlet.convert(model, 12, tied="together")
    with pytest.raises(ConversionError, match="a TiedLinear"):
        mlet.grow(model, {"a": 12})
    view = nn.ModuleDict({"a": nn.Embedding(6, 3)})
    view["b"] = nn.Linear(3, 2)
    view["b"].weight = nn.Parameter(view["a"].weight.detach()[:2])
    with pytest.raises(ConversionError, match="shares the memory of 'b'"):
        mlet.grow(view, {"a": 7})


class Own(nn.Embedding):
    """What it does with ids is its own."""


def with_parametrization() -> nn.Module:
    table = nn.Embedding(4, 2)
    parametrize.register_parametrization(table, "weight", nn.Identity())
    return nn.ModuleList([table])


def with_gradient_hook() -> nn.Module:
    model = nn.ModuleList([nn.Embedding(4, 2)])
    model[0].weight.register_hook(lambda grad: grad)
    return model


def with_counts() -> nn.Module:
    model = nn.ModuleList([nn.Embedding(4, 2)])
    model[0].register_buffer("seen", torch.zeros(4))
    return model


def with_optimizer() -> nn.Module:
    model = mlet.convert(nn.ModuleList([nn.Embedding(4, 2)]), 8)
    model.optimizer = fused(torch.optim.Adam, model)
    return model


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: nn.ModuleList([Own(4, 2)]), "'0' is a Own, .* subclasses={Own}"),
        (lambda: nn.ModuleList([nn.Linear(4, 2)]), "no table '0' to grow; the tables are none"),
        (lambda: nn.ModuleList([nn.Embedding(9, 2)]), "has 9 categories, which cannot become 6"),
        (with_parametrization, "its weight is parametrized"),
        (with_gradient_hook, "hooks on its gradient"),
        (with_counts, "holds 'seen' with an entry for each category"),
        (with_optimizer, "trained by a fused optimizer: give it as optimizer="),
        (
            lambda: FieldEmbedding([Field("0", 4, 2, compression=Hashing(name="hashing"))]),
            "is kept in Hash.*only ordinary and two-layer tables grow",
        ),
        (
            lambda: FieldEmbedding([Field("0", 4, 2)]).collapse("int8"),
            "is kept in QuantizedTables",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(make: Callable[[], nn.Module], error: str) -> None:
    model = make()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(ConversionError, match=error):
        mlet.grow(model, {"0": 6})
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_a_vouched_subclass_grows_in_two_layers_too() -> None:
    model = nn.ModuleList([Own(4, 2)])
    mlet.grow(model, {"0": 6}, subclasses={Own})
    mlet.convert(model, 8, subclasses={Own})
    mlet.grow(model, {"0": 7}, subclasses={Own})
    assert mlet.collapse(model)[0].weight.shape == (7, 2)
    assert type(model[0]) is Own


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (torch.optim.Adafactor, "Adafactor: how the state of a new row begins is known of"),
        (torch.optim.ASGD, "ASGD"),
        (torch.optim.LBFGS, "LBFGS"),
    ],
)
def test_optimizers_whose_states_are_not_of_rows(kind: Any, error: str) -> None:
    model = Tower()
    optimizer = kind(model.parameters())
    with pytest.raises(ConversionError, match=error):
        mlet.grow(model, {"user": 11}, optimizer=optimizer)
    assert model.user.num_embeddings == len(model.user.weight) == 10
    for noise in (-1.0, float("nan")):
        with pytest.raises(ConversionError, match="noise must not be negative"):
            mlet.grow(model, {"user": 11}, noise=noise)
    with pytest.raises(ConversionError, match="no number of categories"):
        mlet.grow(model, {"user": 11.5})  # type: ignore[dict-item]


def test_a_compiled_model_looks_up_new_rows() -> None:
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 1))
    compiled: Any = torch.compile(model, backend="eager")
    compiled(torch.tensor([5]))
    mlet.grow(compiled, {"_orig_mod.0": 9})
    torch.testing.assert_close(compiled(torch.tensor([8])), model(torch.tensor([8])))


def test_rare_rows_stay_and_other_fields_grow() -> None:
    """A field whose rare categories share rows is refused; one beside it grows, ids checked."""
    rare = RareRows(5, 2)
    layer = FieldEmbedding([Field("item", 50, 4, 8, rare=rare), Field("user", 30, 4, 8)])
    before = layer(torch.tensor([[49, 29]]))
    with pytest.raises(ConversionError, match="'item': its rare categories share rows"):
        mlet.grow(layer, {"item": 60})
    mlet.grow(layer, {"user": 60})
    torch.testing.assert_close(layer(torch.tensor([[49, 29]])), before)
    assert layer(torch.tensor([[3, 59]])).shape == (1, 2, 4)
    with pytest.raises(IndexError, match="'user': id 60"):
        layer(torch.tensor([[3, 60]]))


def test_fields_that_share_grow_together() -> None:
    rare = RareRows(5, 2)
    fields = [Field("item", 9, 4, 8), Field("last", 9, 4, 8, shares="item")]
    layer = FieldEmbedding(fields)
    mlet.grow(layer, {"item": 12})
    found = layer(torch.tensor([[11, 11]]))
    torch.testing.assert_close(found[:, 0], found[:, 1])
    shared = FieldEmbedding([replace(field, rare=rare) for field in fields])
    both = shared(torch.tensor([[8, 8], [0, 0], [3, 3]]))
    torch.testing.assert_close(both[:, 0], both[:, 1])
