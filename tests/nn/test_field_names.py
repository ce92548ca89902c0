"""A FieldEmbedding's state_dict goes by its fields, whatever is stacked with what in memory."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mlet
from mlet.errors import ConversionError
from mlet.nn import Field, FieldEmbedding
from mlet.nn.compression import (
    Compression,
    DeepHash,
    Hashing,
    LowRank,
    MixedDimension,
    Pruned,
    QuotientRemainder,
    TensorTrain,
)
from mlet.nn.init import INITIALISATIONS
from mlet.optim import FusedAdagrad, FusedSGD
from mlet.theory import factors_of, factors_of_state_dict

METHODS: list[Compression | None] = [
    None,
    None,
    Hashing(collisions=3),
    QuotientRemainder(collisions=2),
    LowRank(rank=1),
    Pruned(keep=0.6),
    TensorTrain(rank=2),
    DeepHash(hashes=3, widths=[2]),
    MixedDimension(alpha=0.5),
]


@st.composite
def field_sets(draw: st.DrawFn) -> list[Field]:
    names = draw(st.lists(st.text(max_size=6), min_size=1, max_size=5, unique=True))
    fields = []
    for name in names:
        method = draw(st.sampled_from(METHODS))
        two_layer = method is None or method.takes_inner_dim
        fields.append(
            Field(
                name,
                draw(st.integers(1, 9)),
                4,
                draw(st.sampled_from([None, 5, 8])) if two_layer else None,
                multi_valued=draw(st.booleans()),
                compression=method,
            )
        )
    return fields


def layer(*names: str, **inner_dims: int) -> FieldEmbedding:
    return FieldEmbedding([Field(name, 6, 2, inner_dims.get(name, 4)) for name in names])


@settings(max_examples=40, deadline=None)
@given(field_sets(), st.randoms(use_true_random=False))
def test_a_state_loads_into_the_same_fields_in_any_order(
    fields: list[Field], random: object
) -> None:
    one = FieldEmbedding(fields)
    shuffled = list(fields)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = FieldEmbedding(shuffled)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    for field in fields:
        ours, theirs = one.parts(field.name), other.parts(field.name)
        assert list(ours) == list(theirs)
        for part, values in ours.items():
            assert torch.equal(values, theirs[part])
    assert set(one.state_dict()) == set(other.state_dict())


def test_the_names_are_the_fields() -> None:
    fields = [
        Field("user", 6, 2, 4),
        Field("film", 5, 2),
        Field("a.b%/c", 4, 2, 4, multi_valued=True),
        Field("low", 7, 2, compression=LowRank(rank=1)),
    ]
    state = FieldEmbedding(fields).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == {
        "user.inner": (6, 4),
        "user.projection": (4, 2),
        "film.weight": (5, 2),
        "a%2Eb%25%2Fc.inner": (4, 4),
        "a%2Eb%25%2Fc.projection": (4, 2),
        "low.left": (7, 1),
        "low.right": (1, 2),
    }
    assert set(factors_of_state_dict(state)) == {"user", "a%2Eb%25%2Fc"}


def test_swapped_fields_and_other_inner_dims_leave_the_other_names_alone() -> None:
    both = layer("user", "film")
    again = layer("film", "user")
    again.load_state_dict(both.state_dict(), strict=True)
    assert torch.equal(again.table("user"), both.table("user"))
    # One field's k is another: only its entries differ.
    wider = layer("user", "film", film=8).state_dict()
    assert list(wider) == list(both.state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for film\.inner") as error:
        both.load_state_dict(wider)
    assert "user" not in str(error.value)


def test_missing_and_unknown_fields_are_named() -> None:
    with pytest.raises(RuntimeError) as error:
        layer("user", "film").load_state_dict(layer("user", "town").state_dict())
    text = str(error.value)
    assert 'Missing key(s) in state_dict: "film.inner", "film.projection"' in text
    assert 'Unexpected key(s) in state_dict: "town.inner", "town.projection"' in text
    missing, unexpected = layer("user", "film").load_state_dict(
        layer("user", "town").state_dict(), strict=False
    )
    assert missing == ["film.inner", "film.projection"]
    assert sorted(unexpected) == ["town.inner", "town.projection"]


@pytest.mark.parametrize("wrap", [lambda model: model, copy.deepcopy, torch.compile])
def test_inside_other_modules(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(nn.ModuleDict({"embedding": layer("user", "film"), "head": nn.Linear(2, 1)}))
    state = model.state_dict()
    prefix = "_orig_mod." if isinstance(model, torch._dynamo.OptimizedModule) else ""
    assert f"{prefix}embedding.user.inner" in state
    twin = wrap(nn.ModuleDict({"embedding": layer("film", "user"), "head": nn.Linear(2, 1)}))
    twin.load_state_dict(state)
    for name, value in twin.state_dict().items():
        assert torch.equal(value, state[name])


def test_variables_and_meta_devices() -> None:
    kept = layer("user").state_dict(keep_vars=True)
    kept["user.inner"].sum().backward()
    with torch.device("meta"):
        empty = layer("user")
    with pytest.raises(RuntimeError, match=r"user\.inner lies in a matrix with other fields"):
        empty.load_state_dict(layer("user").state_dict(), assign=True)
    full = layer("user")
    empty.to_empty(device="cpu").load_state_dict(full.state_dict(), assign=True)
    assert torch.equal(empty.table("user"), full.table("user"))


def test_states_of_mlet_0_1_go_by_stacks() -> None:
    fields = [
        Field("user", 6, 2, 4),
        Field("tags", 3, 2, 4, multi_valued=True),
        Field("film", 5, 2),
        Field("town", 4, 2, 4),
    ]
    old = {
        "tables.0.inner": torch.randn(13, 4),  # user, town, tags
        "tables.0.projection": torch.randn(3, 4, 2),
        "tables.1.weight": torch.randn(5, 2),
    }
    model = FieldEmbedding(fields)
    model.load_state_dict(old)
    state = model.state_dict()
    assert torch.equal(state["town.inner"], old["tables.0.inner"][6:10])
    assert torch.equal(state["tags.projection"], old["tables.0.projection"][2])
    assert torch.equal(state["film.weight"], old["tables.1.weight"])
    with pytest.raises(ConversionError, match=r"as mlet 0\.1 saved a FieldEmbedding"):
        mlet.collapse_state_dict(old)
    del old["tables.1.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(old)


def test_surgery_finds_the_tables_of_a_field_embedding() -> None:
    fields = [Field("user", 6, 2, 4), Field("film", 5, 2), Field("town", 4, 2, 8)]
    model = nn.ModuleDict({"embedding": FieldEmbedding(fields), "head": nn.Linear(2, 1)})
    found = mlet.summary(model)
    assert [(t.name, t.n, t.d, t.k) for t in found.tables] == [
        ("embedding.user", 6, 2, 4),
        ("embedding.town", 4, 2, 8),
    ]
    assert found.others == 5 * 2 + 3
    groups = mlet.param_groups(model, projection={"lr": 0.5})
    sizes = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    assert sizes == [6 * 4 + 4 * 8, 4 * 2 + 8 * 2, 5 * 2 + 3]
    assert groups[1]["lr"] == 0.5

    ids = torch.tensor([[1, 2, 3], [5, 4, 0]])
    before, state = model["embedding"](ids), model.state_dict()
    assert set(factors_of(model)) == {"user", "film", "town"}
    plain = mlet.collapse(model)
    assert plain is model
    assert not mlet.summary(model).tables
    torch.testing.assert_close(model["embedding"](ids), before)
    collapsed = mlet.collapse_state_dict(state)
    assert list(collapsed) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(collapsed[name], value)
    with pytest.raises(ConversionError, match="nothing to collapse"):
        mlet.collapse(model)


def test_what_a_fused_optimizer_would_not_train_is_named() -> None:
    bags = nn.Sequential(mlet.EmbeddingBag(5, 2, inner_dim=4), nn.Linear(2, 1))
    fused = FusedSGD(bags)
    assert [*map(id, fused.param_groups[0]["params"])] == [*map(id, bags[0].parameters())]
    train = Field("film", 8, 4, compression=TensorTrain(rank=2))
    mixed = nn.ModuleDict({"embedding": FieldEmbedding([Field("user", 6, 4, 8), train])})
    with pytest.raises(ValueError, match=r"not embedding\.tables\.1\.cores\.0\.0, .*\.0\.2: use"):
        FusedAdagrad(mixed)
    optimizer = FusedAdagrad(nn.ModuleList(mixed["embedding"].stacks()))
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_it_prints_its_fields() -> None:
    text = str(FieldEmbedding([Field("user", 6, 2, 4), Field("film", 5, 2, multi_valued=True)]))
    assert "'user': n=6, d=2, k=4" in text
    assert "'film': n=5, d=2, mean of a bag" in text


@pytest.mark.parametrize("init", [*INITIALISATIONS, "fresh"])
def test_convert_draws_factors_as_asked(init: str) -> None:
    torch.manual_seed(1)
    layer = mlet.convert(nn.Embedding(900, 4), 400, init=init)  # type: ignore[arg-type]
    assert isinstance(layer, mlet.Embedding)
    expected = 0.25 if init == "paper" else 1 / 20
    assert layer.projection.std().item() == pytest.approx(expected, rel=0.1)
    assert layer.inner.abs().max() <= 900**-0.5
