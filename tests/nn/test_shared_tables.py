"""Fields that are looked up in one table: as if each had a copy, and gradients were added up."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import lookups
from torch import Tensor, nn

from mlet.engine import use_backend
from mlet.nn import Bags, Field, FieldEmbedding
from mlet.nn.compression import (
    Compression,
    DeepHash,
    Hashing,
    LowRank,
    Pruned,
    QuotientRemainder,
    TensorTrain,
)
from mlet.optim import FusedAdagrad, FusedSGD
from mlet.theory import factors_of

METHODS: list[Compression | None] = [
    None,
    Hashing(collisions=3),
    QuotientRemainder(collisions=2),
    LowRank(rank=1),
    Pruned(keep=0.6),
    TensorTrain(rank=2),
    DeepHash(hashes=3, widths=[2]),
]


@st.composite
def sharing(draw: st.DrawFn) -> FieldEmbedding:
    """Fields in any order, one- and multi-valued, with a table of their own or another's."""
    same, pooling = draw(st.booleans()), draw(st.sampled_from(["sum", "mean"]))
    fields: list[Field] = []
    for owner in range(draw(st.integers(1, 3))):
        dim = 2 if same else draw(st.integers(1, 3))
        k, n = draw(st.sampled_from([None, dim + 1, dim + 3])), draw(st.integers(1, 9))
        fields += [
            Field(
                f"f{owner}-{place}",
                n,
                dim,
                k,
                draw(st.booleans()),
                pooling,
                shares=f"f{owner}-0" if place else None,
            )
            for place in range(draw(st.integers(1, 4)))
        ]
    fields = draw(st.permutations(fields))
    options = {"sparse": draw(st.booleans()), "table_bias": draw(st.booleans())}
    return FieldEmbedding(fields, **options).double()


def apart(layer: FieldEmbedding) -> FieldEmbedding:
    """The same fields, each with a copy of its table."""
    own = [Field(f.name, f.num_embeddings, f.dim, f.inner_dim, f.multi_valued, f.pooling)
           for f in layer.fields]  # fmt: skip
    copies = FieldEmbedding(own, sparse=False, table_bias=layer.table_bias).double()
    with torch.no_grad():
        for field in layer.fields:
            for part, tensor in copies.parts(field.name).items():
                tensor.copy_(layer.parts(field.name)[part])
    return copies


def gradients(layer: FieldEmbedding) -> dict[str, Tensor]:
    """Of every field's parts, as the copies of a model that has them for parameters."""
    other = copy.deepcopy(layer)
    for mine, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        grad = torch.zeros_like(mine) if mine.grad is None else mine.grad.to_dense()
        theirs.data = grad.detach().clone()
    return {
        f"{field.name}.{part}": tensor.detach()
        for field in other.fields
        for part, tensor in other.parts(field.name).items()
    }


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_equals_copies_whose_gradients_are_added_up(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1_000)))
    layer = data.draw(sharing())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    copies = apart(layer)
    ids, bags = data.draw(lookups(layer))
    out, expected = layer(ids, bags), copies(ids, bags)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    found, parts = gradients(layer), gradients(copies)
    sums: dict[str, Tensor] = {}
    for field in layer.fields:
        for part in layer.parts(field.name):
            name = f"{field.shares or field.name}.{part}"
            sums[name] = sums.get(name, 0.0) + parts[f"{field.name}.{part}"]
    for name, total in sums.items():
        torch.testing.assert_close(found[name], total, rtol=1e-9, atol=1e-11)
    with torch.no_grad():  # by torch's operations, and as it is served
        plain = layer.collapse()
        torch.testing.assert_close(plain(ids, bags), expected, rtol=1e-10, atol=1e-12)
    owners = {field.shares or field.name for field in layer.fields}
    assert {key.split(".")[0] for key in layer.state_dict()} == owners
    assert set(plain.state_dict()) == {f"{owner}.weight" for owner in owners}
    assert set(factors_of(layer)) == owners
    sizes = {f.name: f.num_embeddings * f.dim for f in layer.fields if f.shares is None}
    assert sum(p.numel() for p in plain.parameters()) == sum(sizes.values()), "counted once"


FIELDS = [
    Field("history", 23, 4, multi_valued=True, shares="item"),
    Field("user", 11, 4),
    Field("item", 23, 4),
    Field("last", 23, 4, shares="item"),
]
IDS = torch.tensor([[10, 22, 0], [0, 1, 22], [3, 5, 5]])
BAGS = {"history": Bags(torch.tensor([22, 5, 5, 0]), torch.tensor([0, 3, 3, 4]))}


def by_hand(layer: FieldEmbedding) -> Tensor:
    """From the table that the fields say they have."""
    item, user = layer.table("item"), layer.table("user")
    assert torch.equal(layer.table("history"), item)
    values, offsets = BAGS["history"]
    pooled = [
        item[values[a:b]].mean(0) if b > a else torch.zeros_like(item[0])
        for a, b in pairwise(offsets.tolist())
    ]
    columns = [torch.stack(pooled), user[IDS[:, 0]], item[IDS[:, 1]], item[IDS[:, 2]]]
    return torch.stack(columns, 1)


def with_method(method: Compression | None, k: int | None) -> FieldEmbedding:
    torch.manual_seed(1)
    fields = [
        Field(f.name, f.num_embeddings, 4, k, f.multi_valued, compression=method, shares=f.shares)
        for f in FIELDS
    ]
    return FieldEmbedding(fields).double()


@pytest.mark.parametrize(
    ("method", "k"),
    [(m, None) for m in METHODS] + [(m, 9) for m in METHODS if m is None or m.takes_inner_dim],
)
def test_every_kind_of_table_can_be_shared(method: Compression | None, k: int | None) -> None:
    layer = with_method(method, k)
    torch.testing.assert_close(layer(IDS, BAGS), by_hand(layer))
    served = layer.collapse()
    with torch.no_grad():
        torch.testing.assert_close(served(IDS, BAGS), by_hand(layer))
    state = layer.state_dict()
    assert not [key for key in state if key.startswith(("history", "last"))]
    other = with_method(method, k)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(state)
    torch.testing.assert_close(other(IDS, BAGS), layer(IDS, BAGS))


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_codes_are_shared_too(precision: str) -> None:
    layer = with_method(None, 9).float()
    served = layer.collapse(precision)  # type: ignore[arg-type]
    torch.testing.assert_close(served(IDS, BAGS), by_hand(served))
    torch.testing.assert_close(served(IDS, BAGS), by_hand(layer), rtol=0, atol=0.1)
    rows = {key: len(part) for key, part in served.state_dict().items() if "weight" in key}
    assert all(key.startswith(("item", "user")) for key in rows)


def test_a_shared_table_starts_from_a_trained_one_and_is_exported() -> None:
    layer = with_method(None, 9)
    table = torch.randn(23, 4, dtype=torch.float64)
    layer.start_from("last", table)
    torch.testing.assert_close(layer.table("item"), table)
    values, offsets = BAGS["history"]

    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer.collapse().requires_grad_(False)

        def forward(self, ids: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
            return self.layer(ids, {"history": Bags(values, offsets)})

    batch, count = torch.export.Dim("batch", min=1), torch.export.Dim("count", min=0)
    shapes = ({0: batch}, {0: count}, {0: batch + 1})
    program = torch.export.export(Served(), (IDS, values, offsets), dynamic_shapes=shapes).module()
    found = program(IDS[:2], torch.tensor([1, 2]), torch.tensor([0, 0, 2]))
    expected = layer(IDS[:2], {"history": Bags(torch.tensor([1, 2]), torch.tensor([0, 0, 2]))})
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("k", [None, 9])
def test_fused_steps_are_those_of_torch_on_one_table(backend: str, k: int | None) -> None:
    kind = torch.float32
    with use_backend(backend):  # type: ignore[arg-type]
        for fused, plain in ((FusedSGD, torch.optim.SGD), (FusedAdagrad, torch.optim.Adagrad)):
            mine = with_method(None, k).to(kind)
            theirs = FieldEmbedding(mine.fields, sparse=False).to(kind)
            theirs.load_state_dict(mine.state_dict())
            steps = fused(mine, lr=0.1), plain(theirs.parameters(), lr=0.1)
            for _ in range(3):
                for layer, optimizer in zip((mine, theirs), steps, strict=True):
                    optimizer.zero_grad()
                    layer(IDS, BAGS).sin().sum().backward()
                    optimizer.step()
            for name, tensor in mine.state_dict().items():
                torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_an_id_that_is_not_there_is_of_the_field_that_has_it() -> None:
    layer = with_method(None, None)
    wrong = IDS.clone()
    wrong[1, 2] = 23
    bags = {"history": Bags(torch.tensor([22, -1, 5, 0]), torch.tensor([0, 3, 3, 4]))}
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            with pytest.raises(IndexError, match=r"field 'last': id 23 is outside .* 23 categ"):
                layer(wrong, BAGS)
            with pytest.raises(IndexError, match="field 'history': id -1 is outside"):
                layer(IDS, bags)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (Field("b", 9, 2, shares="c"), "field 'b' shares the table of 'c', which has none"),
        (Field("b", 9, 2, shares="b"), "field 'b' shares the table of 'b', which has none"),
        (Field("b", 8, 2, shares="a"), "but its num_embeddings is 8, not 9"),
        (Field("b", 9, 3, shares="a"), "but its dim is 3, not 2"),
        (Field("b", 9, 2, 5, shares="a"), "but its inner_dim is 5, not None"),
        (Field("b", 9, 2, shares="a", compression=LowRank(rank=1)), "but its compression is"),
        (
            Field("b", 9, 2, multi_valued=True, pooling="sum", shares="a"),
            "pools by sum where another field of it pools by mean",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(field: Field, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FieldEmbedding([Field("a", 9, 2, multi_valued=True), field])
