"""Narrower tables for some fields: tables of d columns of which the last are zero, and stay so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import field_embeddings, lookups
from torch import Tensor, nn

from mlet.nn import Bags, Field, FieldEmbedding
from mlet.nn.compression import PRECISIONS, Hashing, QuotientRemainder
from mlet.nn.field_dims import field_dim
from mlet.nn.rare_rows import RareRows
from mlet.optim import FusedAdagrad, FusedSGD

#: Above every d that is drawn.
WIDTH = 5


class Wide:
    """Tables of ``WIDTH`` columns, looked up row by row with torch's own gradients and steps."""

    def __init__(self, layer: FieldEmbedding) -> None:
        self.fields, self.own = layer.fields, {}
        self.rows = {f.name: layer.rows.of(f.name) for f in layer.fields}
        self.widths: list[tuple[Tensor, int]] = []
        for name in layer.table_names:
            self.own[name] = {}
            for part, tensor in layer.parts(name).items():
                wide = tensor.detach().clone()
                if part != "inner":
                    wide = nn.functional.pad(wide, (0, WIDTH - wide.shape[-1]))
                    self.widths.append((wide, tensor.shape[-1]))
                self.own[name][part] = wide.requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [tensor for parts in self.own.values() for tensor in parts.values()]

    def table(self, field: Field) -> Tensor:
        parts = self.own[field.shares or field.name]
        table = parts["weight"] if "weight" in parts else parts["inner"] @ parts["projection"]
        table = table + parts["table_bias"] if "table_bias" in parts else table
        return table[self.rows[field.name]]

    def __call__(self, ids: Tensor, bags: dict[str, Bags]) -> Tensor:
        columns, vectors = iter(ids.unbind(1)), []
        for field in self.fields:
            table = self.table(field)
            if not field.multi_valued:
                vectors.append(table[next(columns).long()])
                continue
            values, offsets = bags[field.name]
            found = [table[bag.long()] for bag in values.split(offsets.diff().tolist())]
            sums = torch.stack([rows.sum(0) for rows in found])
            lengths = offsets.diff().clamp(min=1).unsqueeze(1)
            vectors.append(sums / lengths if field.pooling == "mean" else sums)
        return torch.stack(vectors, 1)

    def stay_zero(self) -> None:
        for tensor, width in self.widths:
            tensor.data[..., width:] = 0


def check(layer: FieldEmbedding, ids: Tensor, bags: dict[str, Bags], fused: type) -> None:
    """Forward, and three steps with one of our optimizers and torch's."""
    wide = Wide(layer)
    kind: Callable[..., torch.optim.Optimizer]
    kind = torch.optim.SGD if fused is FusedSGD else torch.optim.Adagrad
    more = {} if fused is FusedSGD else {"eps": 1e-8}
    steps = fused(layer, lr=0.1, **more), kind(wide.parameters(), lr=0.1, **more)
    for _ in range(3):
        out, expected = layer(ids, bags), wide(ids, bags)
        assert out.shape == (len(ids), len(layer.fields), WIDTH)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
        for optimizer, vectors in zip(steps, (out, expected), strict=True):
            optimizer.zero_grad()
            (vectors + 0.3).sin().sum().backward()
            optimizer.step()
        wide.stay_zero()
    for name in layer.table_names:
        for part, tensor in layer.parts(name).items():
            theirs = wide.own[name][part]
            if part != "inner":
                theirs = theirs[..., : tensor.shape[-1]]
            torch.testing.assert_close(tensor, theirs, rtol=1e-6, atol=1e-7)
    plain = layer.collapse()(ids, bags)
    torch.testing.assert_close(plain, layer(ids, bags), rtol=1e-9, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_they_are_wide_tables_whose_last_columns_stay_zero(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1_000)))
    drawn = data.draw(field_embeddings())
    layer = FieldEmbedding(drawn.fields, sparse=drawn.sparse, width=WIDTH).double()
    check(layer, *data.draw(lookups(layer)), data.draw(st.sampled_from([FusedSGD, FusedAdagrad])))


@pytest.mark.parametrize("fused", [FusedSGD, FusedAdagrad])
@pytest.mark.parametrize("k", [None, 9])
def test_so_are_shared_tables_rare_rows_and_biases(fused: type, k: int | None) -> None:
    torch.manual_seed(0)
    fields = [
        Field("seen", 12, 2, k, multi_valued=True, shares="item"),
        Field("user", 9, 5, k, rare=RareRows(4, 2)),
        Field("item", 12, 2, k),
        Field("brand", 7, 1, k),
    ]
    layer = FieldEmbedding(fields, width=WIDTH, table_bias=True).double()
    bags = {"seen": Bags(torch.tensor([1, 5, 1, 11]), torch.tensor([0, 3, 3, 4]))}
    check(layer, torch.tensor([[8, 5, 1], [2, 5, 6], [0, 11, 1]]), bags, fused)


FIELDS = [Field("a", 300, 2), Field("b", 40, 5, 9), Field("c", 60, 3, multi_valued=True)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_are_of_the_columns_there_are(precision: str) -> None:
    torch.manual_seed(0)
    layer = FieldEmbedding(FIELDS, width=WIDTH, init="variance_matched", init_scale=20)
    served = layer.collapse(precision)  # type: ignore[arg-type]
    ids, bags = torch.randint(40, (50, 2)), {"c": Bags(torch.arange(50), torch.arange(51))}
    found = served(ids, bags)
    for place, field in enumerate(FIELDS):
        alone = FieldEmbedding([field], init="variance_matched").collapse(precision)  # type: ignore[arg-type]
        alone.load_collapsed(field.name, layer.collapsed(field.name, precision))  # type: ignore[arg-type]
        given = (torch.empty(50, 0).long(), bags) if field.multi_valued else (ids[:, [place]], {})
        assert torch.equal(found[:, place, : field.dim], alone(*given)[:, 0])
        assert not found[:, place, field.dim :].any()
    bytes_ = sum(tensor.nbytes for tensor in served.state_dict().values())
    numbers = {"float32": 4, "float16": 2}
    if precision in numbers:
        assert bytes_ == numbers[precision] * (300 * 2 + 40 * 5 + 60 * 3)
    if precision == "int4":
        assert bytes_ == 300 * (1 + 4) + 40 * (3 + 4) + 60 * (2 + 4)


@pytest.mark.parametrize("compression", [Hashing(), QuotientRemainder()], ids=lambda c: c.name)
def test_compressed_tables_are_narrow_too(compression: Hashing | QuotientRemainder) -> None:
    fields = [Field("a", 30, 2, compression=compression), Field("b", 8, 5)]
    layer = FieldEmbedding(fields, width=WIDTH)
    vectors = layer(torch.tensor([[29, 7]]))
    torch.testing.assert_close(vectors[0, 0, :2], layer.table("a")[29])
    assert not vectors[0, 0, 2:].any()
    torch.testing.assert_close(vectors[0, 1], layer.table("b")[7])


def test_exported_and_compiled_they_are_the_same() -> None:
    layer = FieldEmbedding([Field("a", 30, 2, 9), Field("b", 8, 5)], sparse=False, width=WIDTH)
    ids = torch.randint(8, (6, 2))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(layer, (ids,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(program(ids[:4]), layer(ids[:4]))
    gradients = []
    for one in (layer, torch.compile(layer, backend="aot_eager")):
        layer.zero_grad()
        one(ids).sin().sum().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_field_is_wider_than_all() -> None:
    with pytest.raises(ValueError, match="field 'a': d = 3 is above 2"):
        FieldEmbedding([Field("a", 9, 3), Field("b", 9, 2)], width=2)


@pytest.mark.parametrize(
    ("n", "smallest", "dim", "exponent", "expected"),
    [
        (9, 9, 12, 0.5, 12),  # the smallest has all
        (5_000, 9, 12, 0.0, 12),  # without an exponent all have
        (64, 1, 16, 0.5, 2),
        (90, 1, 16, 0.5, 2),  # 1.69: 2 is nearer in the logarithm
        (180, 1, 16, 0.5, 1),  # 1.19
        (10**9, 1, 16, 1.0, 1),  # not below one
        (2, 1, 12, 0.05, 12),  # 11.6: of 8 and 16 the nearer is 16, and d is less
        (2, 1, 12, 0.1, 8),  # 11.2
    ],
)  # fmt: skip
def test_the_rule(n: int, smallest: int, dim: int, exponent: float, expected: int) -> None:
    assert field_dim(n, smallest, dim, exponent) == expected
