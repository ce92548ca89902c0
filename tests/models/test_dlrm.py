"""DLRM against its definition, row by row in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlet.data import Batch, PreparedDataset
from mlet.data.schema import DatasetSchema
from mlet.errors import ConfigError
from mlet.models import DLRM, DLRMConfig, build_model
from mlet.nn import Bags


@pytest.fixture(scope="module")
def schema(small_data: Path) -> DatasetSchema:
    """The synthetic fields, the first of them multi-valued."""
    schema = PreparedDataset(small_data).schema
    first, *others = schema.fields
    bag = first.model_copy(update={"multi_valued": True})
    return schema.model_copy(update={"fields": [bag, *others]})


def batch(schema: DatasetSchema, rows: int = 5) -> Batch:
    torch.manual_seed(3)
    sizes = [field.num_categories for field in schema.one_valued]
    return Batch(
        labels={"label": torch.randint(2, (rows,)).double()},
        dense=torch.rand(rows, len(schema.dense), dtype=torch.float64),
        ids=torch.stack([torch.randint(size, (rows,)) for size in sizes], 1),
        bags={"C1": Bags(torch.randint(9, (2 * rows,)), torch.arange(0, 2 * rows + 1, 2))},
    )


@pytest.mark.parametrize("interaction", ["dot", "cat"])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("inner_dim", [None, 12])
def test_logits_follow_the_definition(
    schema: DatasetSchema, interaction: str, dense: bool, inner_dim: int | None
) -> None:
    if not dense:
        schema = schema.model_copy(update={"dense": []})
    config = DLRMConfig(dim=3, inner_dim=inner_dim, interaction=interaction, top_mlp=[4])
    model = build_model(config, schema).double()
    assert isinstance(model, DLRM)
    rows = batch(schema)
    embedded = model.embedding(rows.ids, rows.bags)
    for row, logit in enumerate(model(rows)):
        vectors = list(embedded[row])
        x = []
        if dense:
            value = rows.dense[row]
            for layer in model.bottom_mlp:
                value = layer(value)
            assert (value >= 0).all(), "a ReLU ends the bottom MLP"
            vectors, x = [value, *vectors], [value]
        if interaction == "cat":
            features = torch.cat(vectors)
        else:
            products = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
            features = torch.cat([*x, torch.stack(products)])
        expected = model.top_mlp(features).squeeze()
        torch.testing.assert_close(logit, expected, rtol=1e-9, atol=1e-12)


def test_collapse_keeps_the_scores_and_the_original(schema: DatasetSchema) -> None:
    torch.manual_seed(0)
    model = build_model(DLRMConfig(dim=3, inner_dim=12), schema).double()
    rows = batch(schema)
    plain = model.collapse()
    torch.testing.assert_close(plain(rows), model(rows), rtol=1e-9, atol=1e-12)
    assert all(field.inner_dim is None for field in plain.embedding.fields)
    assert all(field.inner_dim == 12 for field in model.embedding.fields)
    with torch.no_grad():
        plain.top_mlp[0].bias += 1
    assert not torch.equal(plain(rows), model(rows)), "the copy is independent"


def test_a_single_vector_has_no_pairs(schema: DatasetSchema) -> None:
    lonely = schema.model_copy(update={"fields": schema.fields[:1], "dense": []})
    with pytest.raises(ConfigError, match="model 'dlrm': interaction 'dot' needs at least two"):
        build_model(DLRMConfig(), lonely)
