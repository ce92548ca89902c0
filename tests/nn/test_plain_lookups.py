"""Where the engine has nothing to give, `FieldEmbedding` is torch's own operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import field_embeddings, lookups
from torch import Tensor, nn
from torch.export import Dim

from mlet.engine import function
from mlet.nn import Bags, Field, FieldEmbedding
from mlet.nn.compression import (
    Compression,
    DeepHash,
    Hashing,
    LowRank,
    MixedDimension,
    Precision,
    Pruned,
    QuotientRemainder,
    TensorTrain,
)
from mlet.optim import FusedSGD

COMPRESSIONS: list[Compression | None] = [
    None,
    Hashing(),
    LowRank(rank=2),
    MixedDimension(),
    QuotientRemainder(),
    TensorTrain(rank=3),
    DeepHash(hashes=5, widths=[6]),
    Pruned(keep=0.5),
]
each_kind = pytest.mark.parametrize(
    "kind", COMPRESSIONS, ids=lambda kind: getattr(kind, "name", "")
)


def fields(compression: Compression | None = None, k: int | None = None) -> list[Field]:
    return [
        Field("user", 40, 4, k, compression=compression),
        Field("tags", 9, 4, k, multi_valued=True, compression=compression),
        Field("item", 12, 4, k, compression=compression),
        Field("seen", 12, 4, k, multi_valued=True, pooling="sum", compression=compression),
    ]


class OverTensors(nn.Module):
    """A layer as something that can be exported."""

    def __init__(self, layer: FieldEmbedding) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor, tags: Tensor, seen: Tensor, lengths: Tensor) -> Tensor:
        offsets = torch.cat([lengths.new_zeros(1), lengths]).cumsum(0)
        return self.layer(ids, {"tags": Bags(tags, offsets), "seen": Bags(seen, offsets)})


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    lengths = torch.randint(4, (rows,))
    total = int(lengths.sum())
    ids = torch.stack([torch.randint(40, (rows,)), torch.randint(12, (rows,))], 1)
    return ids, torch.randint(9, (total,)), torch.randint(12, (total,)), lengths


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(function._Lookup, "apply", refuse)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_without_a_gradient_outputs_are_the_engines(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1_000)))
    layer = data.draw(field_embeddings()).collapse()
    ids, bags = data.draw(lookups(layer))
    engines = layer(ids, bags)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(function._Lookup, "apply", None)
        plain = layer(ids, bags)
    torch.testing.assert_close(plain, engines.detach(), rtol=1e-12, atol=1e-14)
    if not bags:
        assert plain.equal(engines)


@pytest.mark.usefixtures("no_engine")
def test_the_rule() -> None:
    layer = FieldEmbedding([Field("user", 9, 2)])
    ids = torch.tensor([[3]])
    with pytest.raises(AssertionError):
        layer(ids)
    with torch.no_grad():
        assert layer(ids)[0, 0].equal(layer.table("user")[3])
    assert layer.requires_grad_(False)(ids)[0, 0].equal(layer.table("user")[3])
    two_layer = FieldEmbedding([Field("user", 9, 2, 5)])
    with torch.no_grad(), pytest.raises(AssertionError):
        two_layer(ids)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
def test_ids_are_checked_against_their_own_table(precision: Precision) -> None:
    layer = FieldEmbedding(fields()).collapse(precision)
    ids, tags, seen, lengths = inputs(5)
    over = OverTensors(layer)
    with torch.no_grad():
        for wrong, message in (
            ((3, 1, 12), r"field 'item': id 12 is outside its table of 12 categories"),
            ((2, 0, -1), r"field 'user': id -1 is outside its table of 40 categories"),
        ):
            row, column, value = wrong
            bad = ids.clone()
            bad[row, column] = value
            with pytest.raises(IndexError, match=message):
                over(bad, tags, seen, lengths)
        bad = tags.clone()
        bad[-1] = 9
        with pytest.raises(IndexError, match=r"field 'tags': id 9 .* \(valid ids: 0 to 8\)"):
            over(ids, bad, seen, lengths)


@each_kind
@pytest.mark.parametrize("k", [None, 6])
def test_it_can_be_exported(kind: Compression | None, k: int | None) -> None:
    if k is not None and kind is not None and not kind.takes_inner_dim:
        pytest.skip("no two-layer tables with this method")
    torch.manual_seed(0)
    over = OverTensors(FieldEmbedding(fields(kind, k), table_bias=kind is None))
    if kind is None:
        nn.init.normal_(over.layer.stacks()[0].table_bias)  # type: ignore[arg-type]
    batch = Dim("batch", min=1)
    values = {0: Dim("values", min=0)}
    shapes = ({0: batch}, values, values, {0: batch})
    program = torch.export.export(over, inputs(3), dynamic_shapes=shapes).module()
    for rows in (1, 2, 50):
        given = inputs(rows, seed=rows)
        torch.testing.assert_close(program(*given), over(*given), rtol=1e-5, atol=1e-6)
    ids, *rest = inputs(4)
    for wrong in (40, -1):
        ids[2, 0] = wrong
        with pytest.raises(IndexError):
            program(ids, *rest)


def test_it_can_be_traced_and_compiled() -> None:
    over = OverTensors(FieldEmbedding(fields()).collapse("int8").eval())
    traced = torch.jit.trace(over, inputs(3), check_trace=False)
    compiled = torch.compile(over, backend="eager", fullgraph=True, dynamic=True)
    for rows in (1, 7, 64):
        given = inputs(rows, seed=rows)
        torch.testing.assert_close(traced(*given), over(*given))
        torch.testing.assert_close(compiled(*given), over(*given))


def test_a_compiled_layer_of_one_layer_is_trained() -> None:
    torch.manual_seed(0)
    layer = FieldEmbedding(fields(), sparse=False)
    compiled = torch.compile(OverTensors(layer), backend="eager", fullgraph=True)
    weight = layer.stacks()[0].weight
    compiled(*inputs(6)).square().sum().backward()
    found, weight.grad = weight.grad, None
    OverTensors(layer)(*inputs(6)).square().sum().backward()
    assert found is not None
    torch.testing.assert_close(found, weight.grad)


def test_a_fused_optimizer_is_not_passed_by() -> None:
    """Were it, tables would get a gradient that their optimizer never looks at."""
    layer = FieldEmbedding([Field("user", 9, 2)])
    optimizer = FusedSGD(layer, lr=0.1)
    (stack,) = layer.stacks()
    assert optimizer.param_groups
    assert not stack.is_plain(traced=True)
    with torch.no_grad():
        assert stack.is_plain(traced=True)
