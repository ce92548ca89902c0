"""The compression methods against their papers' formulas, in float64, entry by entry."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mlet.errors import ConversionError
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
    quantize,
)
from mlet.nn.compression.hashing import hash_ids
from mlet.optim import FusedSGD

N, D, K = 23, 4, 9
METHODS = [
    Hashing(collisions=3),
    QuotientRemainder(collisions=3),
    LowRank(rank=2),
    Pruned(keep=0.4),
    TensorTrain(rank=3),
    DeepHash(hashes=5, widths=[7]),
]
TWO_LAYER = [method for method in METHODS if method.takes_inner_dim]


def layer(
    method: Compression | None, inner_dim: int | None = None, **options: object
) -> FieldEmbedding:
    torch.manual_seed(3)
    fields = [
        Field("user", N, D, inner_dim, compression=method),
        Field("film", 11, D, inner_dim, compression=method),
        Field("tags", 7, D, inner_dim, multi_valued=True, compression=method),
    ]
    return FieldEmbedding(fields, **options).double()  # type: ignore[arg-type]


def batch() -> tuple[Tensor, dict[str, Bags]]:
    ids = torch.tensor([[22, 10], [0, 0], [5, 3], [22, 3]])
    return ids, {"tags": Bags(torch.tensor([6, 0, 6, 2]), torch.tensor([0, 2, 2, 3, 4]))}


def kind(method: Compression) -> str:
    return type(method).__name__


@pytest.mark.parametrize("method", TWO_LAYER, ids=kind)
def test_fields_of_different_k_collapse_to_the_same_outputs(method: Compression) -> None:
    torch.manual_seed(0)
    fields = [
        Field("tags", 7, D, K, multi_valued=True, compression=method),
        Field("user", N, D, None, compression=method),
        Field("film", 11, D, K, compression=method),
        Field("shop", N, D, 2 * K, compression=method),
    ]
    mixed = FieldEmbedding(fields).double()
    ids, bags = batch()
    ids = torch.column_stack([ids, ids[:, 0]])
    torch.testing.assert_close(mixed.collapse()(ids, bags), mixed(ids, bags))


@pytest.mark.parametrize("method", METHODS, ids=kind)
@pytest.mark.parametrize("two_layer", [False, True])
def test_forward_reads_the_rows_of_the_table_and_pools_them(
    method: Compression, two_layer: bool
) -> None:
    if two_layer and not method.takes_inner_dim:
        with pytest.raises(ValueError, match=r"field 'user': .* cannot be trained with inner_dim"):
            layer(method, K)
        return
    embedding = layer(method, K if two_layer else None)
    ids, bags = batch()
    out = embedding(ids, bags)
    user, film, tags = (embedding.table(name) for name in ("user", "film", "tags"))
    assert user.shape == (N, D)
    torch.testing.assert_close(out[:, 0], user[ids[:, 0]])
    torch.testing.assert_close(out[:, 1], film[ids[:, 1]])
    expected = torch.stack([(tags[6] + tags[0]) / 2, torch.zeros(D).double(), tags[6], tags[2]])
    torch.testing.assert_close(out[:, 2], expected)
    assert out[1, 2].eq(0).all()


@pytest.mark.parametrize("method", METHODS, ids=kind)
def test_served_parts_are_enough_to_serve(method: Compression) -> None:
    embedding = layer(method, K if method.takes_inner_dim else None)
    ids, bags = batch()
    served = embedding.collapse()
    assert all(field.inner_dim is None for field in served.fields)
    torch.testing.assert_close(served(ids, bags), embedding(ids, bags))
    again = layer(method)
    for name in ("user", "film", "tags"):
        again.load_collapsed(name, embedding.collapsed(name))
    torch.testing.assert_close(again(ids, bags), embedding(ids, bags))
    with pytest.raises(ValueError, match=r"of field 'user': expected .* got none"):
        again.load_collapsed("user", {})
    wrong = {
        part: tensor[(slice(1),) * tensor.dim()]
        for part, tensor in embedding.collapsed("user").items()
    }
    with pytest.raises(ValueError, match="of field 'user': expected"):
        again.load_collapsed("user", {**embedding.collapsed("user"), **wrong})
    with pytest.raises(ValueError, match="field 'user': unknown extra"):
        again.load_collapsed("user", {**embedding.collapsed("user"), "extra": torch.zeros(1)})


@pytest.mark.parametrize("method", METHODS, ids=kind)
@pytest.mark.parametrize("wrong", [-1, 11])
def test_ids_are_checked_against_their_own_field(method: Compression, wrong: int) -> None:
    ids, bags = batch()
    ids[2, 1] = wrong
    with pytest.raises(IndexError, match=f"field 'film': id {wrong} is outside its table of 11"):
        layer(method)(ids, bags)


def test_gradients_of_kept_entries() -> None:
    # Pruned ones have the gradients of an ordinary table too: they are zeroed before they are read.
    embedding = layer(Pruned(keep=0.4), sparse=False)
    ordinary = layer(None, sparse=False)
    ids, bags = batch()
    for name in ("user", "film", "tags"):
        ordinary.load_collapsed(name, {"weight": embedding.table(name)})
    for one in (embedding, ordinary):
        one(ids, bags).square().sum().backward()
    gradients = [dict(one.named_parameters()) for one in (embedding, ordinary)]
    assert gradients[0].keys() == gradients[1].keys()
    for name, parameter in gradients[0].items():
        torch.testing.assert_close(parameter.grad, gradients[1][name].grad)


@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(m, Pruned)], ids=kind)
def test_gradients(method: Compression) -> None:
    embedding = layer(method, K if method.takes_inner_dim else None, sparse=False)
    ids, bags = batch()
    weights = torch.randn(4, 3, D, dtype=torch.float64)
    parameters = list(embedding.parameters())

    def loss(*values: Tensor) -> Tensor:
        named = dict(zip(dict(embedding.named_parameters()), values, strict=True))
        return (torch.func.functional_call(embedding, named, (ids, bags)) * weights).sum()

    assert torch.autograd.gradcheck(loss, parameters)


def served_numbers(embedding: FieldEmbedding, name: str) -> int:
    return sum(tensor.numel() for tensor in embedding.collapsed(name).values())


def test_hashing_shares_rows() -> None:
    embedding = layer(Hashing(collisions=3), K)
    rows = math.ceil(N / 3)
    assert served_numbers(embedding, "user") == rows * D
    table, shared = embedding.table("user"), embedding.collapsed("user")["weight"]
    for id_ in range(N):
        bucket = int(hash_ids(torch.tensor([id_]), 0, rows))
        assert 0 <= bucket < rows
        torch.testing.assert_close(table[id_], shared[bucket])


@pytest.mark.parametrize("method", [Hashing(collisions=8), DeepHash(hashes=4, widths=[3])])
def test_every_field_has_a_hash_of_its_own(method: Compression) -> None:
    """Were it one for all, what collides in one field would in each: users with films."""
    size = 400
    embedding = FieldEmbedding([Field(n, size, 4, compression=method) for n in ("a", "b")])
    if isinstance(method, Hashing):
        # Which categories share a row: the same row of the table.
        groups = [
            embedding.table(name).unique(dim=0, return_inverse=True)[1] for name in ("a", "b")
        ]
        shared = [(group[:, None] == group[None, :]) for group in groups]
        both = int((shared[0] & shared[1]).sum()) - size
        assert both < 0.5 * (int(shared[0].sum()) - size)
    else:
        embedding.load_collapsed("b", embedding.collapsed("a"))
        assert not torch.equal(embedding.table("a"), embedding.table("b")), "the same decoder"


def test_the_hash_spreads_evenly_and_differs_by_seed() -> None:
    ids = torch.arange(100_000)
    for seed in (0, 1):
        counts = hash_ids(ids, seed, 100).bincount(minlength=100).double()
        # chi-squared with 99 degrees of freedom: mean 99, standard deviation 14
        assert float(((counts - 1_000) ** 2 / 1_000).sum()) < 99 + 5 * 14
    same = (hash_ids(ids, 0, 100) == hash_ids(ids, 1, 100)).double().mean()
    assert float(same) == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("inner_dim", [None, K])
def test_quotient_and_remainder_tell_all_categories_apart(inner_dim: int | None) -> None:
    embedding = layer(QuotientRemainder(collisions=3), inner_dim)
    rows = math.ceil(N / 3)
    assert served_numbers(embedding, "user") == (rows + math.ceil(N / rows)) * D
    # Training starts as with R alone.
    assert torch.equal(embedding.collapsed("user")["quotient"], torch.ones(3, D).double())
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    table, parts = embedding.table("user"), embedding.collapsed("user")
    for id_ in range(N):
        for column in range(D):
            expected = (
                parts["remainder"][id_ % rows, column] * parts["quotient"][id_ // rows, column]
            )
            assert float(table[id_, column]) == pytest.approx(float(expected), rel=1e-12)
    assert len({tuple(row.tolist()) for row in table}) == N


def test_low_rank_keeps_its_factors() -> None:
    embedding = layer(LowRank(rank=2))
    assert served_numbers(embedding, "user") == 2 * (N + D)
    parts = embedding.collapsed("user")
    assert int(torch.linalg.matrix_rank(embedding.table("user"))) == 2
    torch.testing.assert_close(embedding.table("user"), parts["left"] @ parts["right"])
    with pytest.raises(ValueError, match="rank 5 is above the embedding dimension 4"):
        layer(LowRank(rank=5))


def test_mixed_dimensions_shrink_with_size() -> None:
    method = MixedDimension(alpha=0.5)
    # 16 · (n / 10)^−½, to the nearest power of two, at least 1
    for size, expected in (
        (10, None),
        (40, 8),
        (80, 4),
        (90, 4),
        (160, 4),
        (200, 4),
        (2_560, 1),
        (10_000, 1),
    ):
        found = method.of_field(size, 10, 16)
        assert found == (None if expected is None else LowRank(rank=expected))
    assert MixedDimension(alpha=0).of_field(10_000, 10, 16) is None
    sizes = {"small": 10, "middle": 40, "large": 2_560}
    embedding = FieldEmbedding(
        [Field(name, size, 16, compression=method) for name, size in sizes.items()]
    )
    counts = {name: served_numbers(embedding, name) for name in sizes}
    assert counts == {"small": 10 * 16, "middle": (40 + 16) * 8, "large": 2_560 + 16}
    assert embedding(torch.tensor([[9, 39, 2_559]])).shape == (1, 3, 16)


def test_tensor_train_is_the_product_of_its_cores() -> None:
    embedding = layer(TensorTrain(rank=3))
    parts = embedding.collapsed("user")
    cores = [parts[f"core{place}"] for place in (1, 2, 3)]
    first, second, third = cores
    heights, widths = [len(core) for core in cores], [core.shape[2] for core in cores]
    assert math.prod(heights) >= N
    assert math.prod(widths) == D
    ranks = (1, 3, 3, 1)
    count = sum(
        n * before * d * after
        for n, d, (before, after) in zip(heights, widths, pairwise(ranks), strict=True)
    )
    assert served_numbers(embedding, "user") == count
    table = embedding.table("user")
    for id_ in range(N):
        i = (id_ // (heights[1] * heights[2]), id_ // heights[2] % heights[1], id_ % heights[2])
        for column in range(D):
            j = (
                column // (widths[1] * widths[2]),
                column // widths[2] % widths[1],
                column % widths[2],
            )
            expected = sum(
                float(first[i[0], 0, j[0], a] * second[i[1], a, j[1], b] * third[i[2], b, j[2], 0])
                for a in range(3)
                for b in range(3)
            )  # fmt: skip
            assert float(table[id_, column]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", [TensorTrain(rank=16), LowRank(rank=4)], ids=kind)
def test_products_start_with_the_variance_of_a_table(method: Compression) -> None:
    torch.manual_seed(0)
    sizes = [Field(f"f{place}", 1_000, 8, compression=method) for place in range(20)]
    embedding = FieldEmbedding(sizes)
    values = torch.cat([embedding.table(field.name) for field in sizes])
    assert float(values.var() * 3 * 1_000) == pytest.approx(1, rel=0.4)


def test_deep_hash_decodes_an_encoding() -> None:
    embedding = layer(DeepHash(hashes=5, widths=[7]))
    assert served_numbers(embedding, "user") == 5 * 7 + 7 + 7 * D + D
    parts = {key: value.tolist() for key, value in embedding.collapsed("user").items()}
    table = embedding.table("user")
    for id_ in range(0, N, 5):
        code = [
            2 * int(hash_ids(torch.tensor([id_]), seed, 1_000_000)) / 999_999 - 1
            for seed in range(5)
        ]
        hidden = [
            sum(w * x for w, x in zip(row, code, strict=True)) + bias
            for row, bias in zip(parts["0.weight"], parts["0.bias"], strict=True)
        ]
        mish = [h * math.tanh(math.log1p(math.exp(h))) for h in hidden]
        for column in range(D):
            row, bias = parts["2.weight"][column], parts["2.bias"][column]
            expected = sum(w * x for w, x in zip(row, mish, strict=True)) + bias
            assert float(table[id_, column]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("dim", [1, 4, 5])
def test_quantization_moves_no_value_by_more_than_half_a_step(
    precision: Precision, dim: int
) -> None:
    torch.manual_seed(0)
    table = torch.randn(50, dim)
    table[3] = 0.25  # no range at all
    levels, bits = (255, 8) if precision == "int8" else (15, 4)
    fields = [Field("user", 50, dim, None if dim == 5 else 2 * dim)]
    embedding = FieldEmbedding([Field("user", 50, dim)])
    embedding.load_collapsed("user", {"weight": table})
    served = embedding.collapse(precision)
    spread = table.max(dim=1).values - table.min(dim=1).values
    slack = 2e-3 * (1 + table.abs().max()) if bits == 4 else 1e-6
    limit = (spread / levels / 2 + slack).unsqueeze(1)
    assert bool(((served.table("user") - table).abs() <= limit).all())
    ids = torch.tensor([[3], [49], [0]])
    torch.testing.assert_close(served(ids)[:, 0], served.table("user")[ids[:, 0]])
    parts = served.collapsed("user")
    assert sum(part.nbytes for part in parts.values()) == 50 * (
        math.ceil(dim * bits / 8) + (8 if bits == 8 else 4)
    )
    torch.testing.assert_close(parts["codes"], quantize(table, precision)["codes"])
    two_layer = FieldEmbedding(fields)
    coded = two_layer.collapse(precision)
    change = (coded.table("user") - two_layer.table("user")).abs()
    assert float(change.max()) < float(two_layer.table("user").abs().max()) / 4
    assert coded.collapse().table("user").equal(coded.table("user")), "codes stay codes"
    assert two_layer.collapse().collapse(precision).table("user").equal(coded.table("user"))


def test_half_precision_rounds_and_refuses_what_it_cannot_hold() -> None:
    torch.manual_seed(0)
    embedding = FieldEmbedding([Field("user", 50, 3), Field("item", 20, 3)])
    served = embedding.collapse("float16")
    ids = torch.tensor([[3, 0], [49, 19]])
    assert served(ids).equal(embedding(ids).half().float())
    assert served.collapsed("user")["weight"].dtype == torch.float16
    assert sum(tensor.nbytes for tensor in served.state_dict().values()) == 2 * 70 * 3
    embedding.load_collapsed("user", {"weight": torch.full((50, 3), 7e4)})
    with pytest.raises(ConversionError, match=r"row 0 .* beyond what float16 rows are kept in"):
        embedding.collapse("float16")


def test_a_fixed_projection_stays_and_the_tables_learn() -> None:
    embedding = layer(None, K, train_projection=False).float()
    optimizer = FusedSGD(embedding, lr=0.5)
    before = {name: value.clone() for name, value in embedding.named_parameters()}
    ids, bags = batch()
    embedding(ids, bags).square().sum().backward()
    optimizer.step()
    moved = {name: not value.equal(before[name]) for name, value in embedding.named_parameters()}
    assert {name.rsplit(".", 1)[1]: value for name, value in moved.items()} == {
        "inner": True,
        "projection": False,
    }
    inner, projection = (before[f"tables.0.{name}"] for name in ("inner", "projection"))
    # W2 ← W2 − η G W1ᵀ on the first field's row 5, which one lookup asked for
    vector = inner[5] @ projection[0]
    expected = inner[5] - 0.5 * (2 * vector) @ projection[0].t()
    torch.testing.assert_close(embedding.factors("user").inner[5], expected)


@pytest.mark.parametrize("values", [[1e5, -1e5], [0.0, 1e6], [70_000.0, 70_000.0], [math.nan, 0.0]])
def test_rows_beyond_the_range_of_their_scale_are_refused(values: list[float]) -> None:
    table = torch.zeros(3, 2)
    table[1] = torch.tensor(values)
    with pytest.raises(ConversionError, match="row 1 of a table holds values from"):
        quantize(table, "int4")
    if not math.isnan(values[0]):
        codes = quantize(table, "int8")
        assert codes["scale"].isfinite().all()
