"""`FieldEmbedding` against a loop over rows and fields in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import field_embeddings, lookups
from torch.func import functional_call

from mlet.nn import Bags, Field, FieldEmbedding


def naive(
    layer: FieldEmbedding, tables: dict[str, torch.Tensor], ids: torch.Tensor, bags: dict[str, Bags]
) -> list[torch.Tensor]:
    """Vectors (B, d) of each field, one row at a time."""
    result, column = [], 0
    for field in layer.fields:
        table, rows = tables[field.name], []
        if field.multi_valued:
            values, offsets = bags[field.name]
            for start, stop in pairwise(offsets.tolist()):
                chosen = table[values[start:stop].long()]
                pooled = chosen.sum(0)
                if field.pooling == "mean" and len(chosen):
                    pooled = pooled / len(chosen)
                rows.append(pooled)
        else:
            rows = [table[int(i)] for i in ids[:, column]]
            column += 1
        result.append(torch.stack(rows))
    return result


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_a_naive_loop_forward_and_backward(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1_000)))
    layer = data.draw(field_embeddings())
    ids, bags = data.draw(lookups(layer))
    out = layer(ids, bags)

    factors: dict[str, list[torch.Tensor]] = {}
    for field in layer.fields:
        group = next(t for t in layer.tables if field.name in t.sizes)
        rows = [group.rows_of(field.name).clone()]
        if field.inner_dim is not None:
            rows.append(group.projection.detach()[list(group.sizes).index(field.name)].clone())
        factors[field.name] = [factor.requires_grad_() for factor in rows]
    tables = {
        name: rows[0] if len(rows) == 1 else rows[0] @ rows[1] for name, rows in factors.items()
    }
    expected = naive(layer, tables, ids, bags)
    joined = torch.stack(expected, 1) if layer.same_dim else torch.cat(expected, 1)
    torch.testing.assert_close(out, joined, rtol=1e-10, atol=1e-12)

    upstream = torch.randn_like(out)
    out.backward(upstream)
    joined.backward(upstream)
    for table in layer.tables:
        grad = table.stacked.grad
        assert grad.is_sparse == layer.sparse
        for place, name in enumerate(table.sizes):
            rows = slice(table.starts[name], table.starts[name] + table.sizes[name])
            known = [f.grad if f.grad is not None else torch.zeros_like(f) for f in factors[name]]
            torch.testing.assert_close(grad.to_dense()[rows], known[0], rtol=1e-9, atol=1e-12)
            if table.inner_dim is not None:
                found = table.projection.grad[place]
                torch.testing.assert_close(found, known[1], rtol=1e-9, atol=1e-12)


def test_gradcheck() -> None:
    """With dense gradients: gradcheck takes no sparse ones, which the naive loop checks above."""
    torch.manual_seed(0)
    fields = [Field("a", 4, 2, 3), Field("g", 3, 2, 3, multi_valued=True), Field("b", 2, 2)]
    layer = FieldEmbedding(fields, sparse=False).double()
    ids = torch.tensor([[1, 1], [1, 0]])
    bags = {"g": Bags(torch.tensor([2, 0, 2]), torch.tensor([0, 3, 3]))}
    names = [name for name, _ in layer.named_parameters()]

    def forward(*values: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (ids, bags))

    assert torch.autograd.gradcheck(forward, tuple(layer.parameters()))


def test_sparse_gradients_hold_each_queried_row_once() -> None:
    layer = FieldEmbedding([Field("a", 50, 2, 4), Field("b", 50, 2, 4)])
    layer(torch.tensor([[3, 3], [3, 7], [40, 3]])).sum().backward()
    grad = layer.tables[0].inner.grad
    assert grad._indices()[0].tolist() == [3, 40, 53, 57]
    assert not layer.tables[0].projection.grad.is_sparse


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_collapse_gives_ordinary_tables_with_the_same_outputs(data: st.DataObject) -> None:
    layer = data.draw(field_embeddings())
    ids, bags = data.draw(lookups(layer))
    plain = layer.collapse()
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float64}
    torch.testing.assert_close(plain(ids, bags), layer(ids, bags), rtol=1e-10, atol=1e-12)
    plain = layer.float().eval().collapse()
    assert not plain.training
    assert all(field.inner_dim is None for field in plain.fields)
    torch.testing.assert_close(plain(ids, bags), layer(ids, bags), rtol=1e-5, atol=1e-7)


def test_each_table_is_initialised_by_its_own_number_of_categories() -> None:
    torch.manual_seed(0)
    layer = FieldEmbedding([Field("small", 16, 4, 64), Field("large", 10_000, 4, 64)])
    table = layer.tables[0]
    assert 0.2 < table.rows_of("small").abs().max() <= 0.25
    assert 0.009 < table.rows_of("large").abs().max() <= 0.01


def test_an_id_outside_its_table_names_field_id_and_size() -> None:
    layer = FieldEmbedding([Field("user", 5, 2, 4), Field("film", 3, 2, 4)])
    with pytest.raises(IndexError, match=r"field 'user': id 5 is outside its table of 5"):
        layer(torch.tensor([[5, 0]]))
    with pytest.raises(IndexError, match=r"field 'film': id -1 is outside its table of 3"):
        layer(torch.tensor([[0, -1]]))


def test_errors_name_what_is_wrong() -> None:
    layer = FieldEmbedding([Field("user", 5, 2), Field("tags", 3, 2, multi_valued=True)])
    with pytest.raises(ValueError, match="no bags given for the multi-valued field 'tags'"):
        layer(torch.tensor([[1]]))
    with pytest.raises(ValueError, match="one column for each one-valued field: user"):
        layer(torch.tensor([[1, 2]]))
    values = torch.tensor([0, 1, 2])
    for offsets in ([0, 2, 1, 3], [0, 1, 2, 2], [1, 1, 2, 3]):
        with pytest.raises(ValueError, match="'tags': offsets must rise from 0 to the number"):
            layer(torch.zeros(3, 1, dtype=torch.int64), {"tags": (values, torch.tensor(offsets))})
    for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.int16, torch.uint8):
        ids = torch.zeros(2, 1, dtype=torch.int64)
        good = torch.tensor([0, 1, 2])
        with pytest.raises(TypeError, match="ids must be int32 or int64, got"):
            layer(ids.to(dtype), {"tags": (good[:2], good)})
        with pytest.raises(TypeError, match="field 'tags': values must be int32 or int64"):
            layer(ids, {"tags": (good[:2].to(dtype), good)})
        with pytest.raises(TypeError, match="field 'tags': offsets must be int32 or int64"):
            layer(ids, {"tags": (good[:2], good.to(dtype))})
    with pytest.raises(ValueError, match="repeated: a"):
        FieldEmbedding([Field("a", 5, 2), Field("a", 3, 2)])
    with pytest.raises(ValueError, match="at least one field"):
        FieldEmbedding([])
    with pytest.raises(ValueError, match="field 'a': num_embeddings must be at least 1"):
        FieldEmbedding([Field("a", 0, 2)])
    with pytest.raises(
        ValueError, match=r"weight of field 'user': expected \(5, 2\), got \(5, 3\)"
    ):
        layer.load_collapsed("user", {"weight": torch.zeros(5, 3)})
