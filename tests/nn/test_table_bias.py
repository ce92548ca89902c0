"""A bias per table: added to every row that is looked up, and gone when the table is collapsed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlet import collapse_state_dict
from mlet.data import PreparedDataset
from mlet.errors import ConfigError, ConversionError
from mlet.models import ModelConfig, build_model
from mlet.nn import Bags, Field, FieldEmbedding
from mlet.nn.compression import Hashing

FIELDS = [
    Field("user", 30, 3, 8),
    Field("mean", 20, 3, 8, multi_valued=True),
    Field("sum", 10, 3, 8, multi_valued=True, pooling="sum"),
    Field("plain", 5, 3),
    Field("bag", 6, 3, multi_valued=True, pooling="sum"),
]


def layer(**options: Any) -> FieldEmbedding:
    torch.manual_seed(0)
    model = FieldEmbedding(FIELDS, table_bias=True, **options).double()
    for stack in model.stacks():
        assert stack.table_bias is not None
        assert not stack.table_bias.any(), "zero at first"
        torch.nn.init.normal_(stack.table_bias)
    return model


def batch(lengths: list[list[int]]) -> tuple[Tensor, dict[str, Bags]]:
    """Rows with bags of these lengths, three a row."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randint(n, (len(lengths),), generator=generator) for n in (30, 5)], 1)
    bags = {}
    for name, size, column in zip(
        ("mean", "sum", "bag"), (20, 10, 6), zip(*lengths, strict=True), strict=True
    ):
        offsets = torch.tensor([0, *column]).cumsum(0)
        bags[name] = Bags(torch.randint(size, (int(offsets[-1]),), generator=generator), offsets)
    return ids, bags


lengths_of_bags = st.lists(
    st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6
)


def expected(model: FieldEmbedding, ids: Tensor, bags: dict[str, Bags]) -> Tensor:
    """Every field's pooled rows of its table W2 W1 + 1 bᵀ, one row at a time."""
    columns = {"user": ids[:, 0], "plain": ids[:, 1]}
    out = torch.zeros(len(ids), len(FIELDS), 3, dtype=torch.float64)
    for place, field in enumerate(FIELDS):
        parts = model.parts(field.name)
        table = parts["inner"] @ parts["projection"] if field.inner_dim else parts["weight"]
        table = table + parts["table_bias"]
        for row in range(len(ids)):
            if field.name in columns:
                out[row, place] = table[columns[field.name][row]]
                continue
            values, offsets = bags[field.name]
            found = table[values[offsets[row] : offsets[row + 1]]]
            if len(found):
                out[row, place] = found.mean(0) if field.pooling == "mean" else found.sum(0)
    return out


@settings(max_examples=25, deadline=None)
@given(lengths_of_bags)
def test_outputs_gradients_and_collapse(lengths: list[list[int]]) -> None:
    model, (ids, bags) = layer(sparse=False), batch(lengths)
    out = model(ids, bags)
    torch.testing.assert_close(out, expected(model, ids, bags))
    torch.testing.assert_close(model.collapse()(ids, bags), out.detach())
    weights = torch.randn(out.shape, dtype=torch.float64)
    parameters = list(model.parameters())
    mine = torch.autograd.grad((out * weights).sum(), parameters)
    plain = torch.autograd.grad((expected(model, ids, bags) * weights).sum(), parameters)
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_a_state_goes_by_fields_and_collapses_without_the_model() -> None:
    model, other = layer(), layer()
    state = model.state_dict()
    assert {"user.table_bias", "plain.table_bias"} <= set(state)
    for stack in other.stacks():
        torch.nn.init.zeros_(stack.table_bias)
    other.load_state_dict(state)
    ids, bags = batch([[1, 2, 3], [0, 1, 0]])
    assert torch.equal(other(ids, bags), model(ids, bags))
    plain = model.collapse()
    assert all(stack.table_bias is None for stack in plain.stacks())
    collapsed = collapse_state_dict(state)
    assert set(collapsed) == set(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(collapsed[name], value)


def test_a_bias_of_another_width_is_refused() -> None:
    state = {"x.inner": torch.ones(4, 8), "x.projection": torch.ones(8, 3)}
    with pytest.raises(ConversionError, match="table 'x': a table_bias"):
        collapse_state_dict({**state, "x.table_bias": torch.ones(4)})


def test_16_bit_tables_have_a_wide_bias() -> None:
    fields = [Field("user", 30, 3, 8), Field("plain", 5, 3)]
    model = FieldEmbedding(fields, table_bias=True, table_dtype=torch.bfloat16)
    for stack in model.stacks():
        torch.nn.init.constant_(stack.table_bias, 1 + 2**-12)
    out = model(torch.tensor([[1, 2]]))
    assert out.dtype == torch.float32
    torch.testing.assert_close(model.collapse()(torch.tensor([[1, 2]])), out)


def test_compressed_fields_have_none() -> None:
    fields = [Field("user", 30, 4, compression=Hashing(collisions=2))]
    with pytest.raises(ValueError, match=r"field 'user'.*table_bias"):
        FieldEmbedding(fields, table_bias=True)


@pytest.mark.parametrize("init", ["paper", "variance_matched"])
def test_rows_are_initialised_to_scale(init: Any) -> None:
    torch.manual_seed(0)
    once = FieldEmbedding([Field("a", 50, 4, 8), Field("b", 9, 4)], init=init)
    torch.manual_seed(0)
    thrice = FieldEmbedding([Field("a", 50, 4, 8), Field("b", 9, 4)], init=init, init_scale=3.0)
    for name in ("a", "b"):
        torch.testing.assert_close(thrice.table(name), 3 * once.table(name))
    with pytest.raises(ValueError, match="init_scale"):
        FieldEmbedding([Field("b", 9, 4)], init_scale=0.0)


@pytest.mark.parametrize("name", ["dlrm", "deepfm", "wide_deep"])
def test_every_model_takes_it_and_serves_ordinary_tables(name: str, small_data: Any) -> None:
    schema = PreparedDataset(small_data).schema
    config = ModelConfig.parse(
        {"name": name, "dim": 4, "inner_dim": 8, "table_bias": True, "init_scale": 2.0}, "model"
    )
    model = build_model(config, schema)
    biased = [stack for stack in model.embedding.stacks() if stack.table_bias is not None]
    assert biased
    narrow = [p for n, p in model.named_parameters() if "table_bias" in n and p.shape[-1] == 1]
    assert not narrow, "the linear part has none"
    assert not config.single_layer().table_bias
    assert all("table_bias" not in key for key in model.collapse().state_dict())


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="init_scale"):
        ModelConfig.parse({"name": "dlrm", "init_scale": 0}, "model")
