"""Tables as codes into codebooks: what is kept, decoded by hand; how near it is."""

from __future__ import annotations

import pytest
import torch

from mlet.errors import ConversionError
from mlet.nn import Bags, Field, FieldEmbedding
from mlet.nn.compression import Precision, quantize

WIDTHS: dict[Precision, int] = {"pq8": 1, "pq4": 2, "pq2": 4}


def tiers(rows: int, width: int) -> list[tuple[int, int, int]]:
    """First row, end and columns of a code, as documented: the first 1/32 of the rows has a code
    for one column, the first 1/4 for at most two; tiers of under 256 rows are filled up first."""
    ends = [min(rows, max(256, -(-rows // part))) for part in (32, 4)][: {1: 0, 2: 1, 4: 2}[width]]
    return list(zip([0, *ends], [*ends, rows], (1, 2, 4), strict=False))


@pytest.mark.parametrize("precision", WIDTHS)
@pytest.mark.parametrize(("rows", "dim"), [(5, 3), (300, 1), (8_000, 6)])
def test_codes_are_decoded_as_they_are_laid_out(precision: Precision, rows: int, dim: int) -> None:
    torch.manual_seed(rows)
    table = torch.randn(rows, dim)
    kept = quantize(table, precision)
    codes, book = kept["codes"].tolist(), kept["codebook"].float().tolist()
    expected = torch.zeros(rows, dim)
    code = number = 0
    for start, end, width in tiers(rows, WIDTHS[precision]):
        width = min(width, dim)
        groups, entries = -(-dim // width), min(256, end - start)
        for row in range(start, end):
            for column in range(dim):
                group, inside = divmod(column, width)
                place = code + (row - start) * groups + group
                entry = number + (group * entries + codes[place]) * width + inside
                expected[row, column] = book[entry]
        code += (end - start) * groups
        number += groups * entries * width
    assert (len(codes), len(book)) == (code, number), "nothing else is kept"
    layer = FieldEmbedding([Field("other", 400, dim), Field("x", rows, dim)])
    layer.load_collapsed("x", {"weight": table})
    served = layer.collapse(precision)
    assert served.table("x").equal(expected)
    ids = torch.stack([torch.randint(400, (50,)), torch.randint(rows, (50,))], dim=1)
    assert served(ids)[:, 1].equal(expected[ids[:, 1]])
    # As many centroids as rows leave no error but that of float16.
    error = (expected - table).abs().amax(dim=1)
    alone = precision != "pq8" or rows <= 256
    assert error[:256].max() < 2e-3 if alone else error.square().mean() < 1e-2


def test_more_bits_are_nearer_and_the_same_table_gives_the_same_codes() -> None:
    torch.manual_seed(0)
    table = torch.randn(9_000, 8)
    layer = FieldEmbedding([Field("x", 9_000, 8)])
    layer.load_collapsed("x", {"weight": table})
    errors = [float((layer.collapse(p).table("x") - table).square().mean()) for p in WIDTHS]
    assert errors == sorted(errors)
    # Uniform quantization of a normal variable with 256 levels is no better than this.
    assert errors[0] < 1e-3
    assert errors[-1] < 0.3, "a quarter of a byte a number keeps most of its variance"
    for precision in WIDTHS:
        one, other = quantize(table, precision), quantize(table.clone(), precision)
        assert all(one[part].equal(other[part]) for part in one)


def test_bags_and_values_beyond_float16() -> None:
    torch.manual_seed(0)
    layer = FieldEmbedding([Field("tags", 30, 4, multi_valued=True), Field("x", 20, 4)])
    served = layer.collapse("pq4")
    bags = {"tags": Bags(torch.tensor([3, 5, 7]), torch.tensor([0, 2, 2, 3]))}
    found = served(torch.tensor([[1], [2], [3]]), bags)
    rows = served.table("tags")
    expected = torch.stack([rows[[3, 5]].mean(dim=0), torch.zeros(4), rows[7]])
    torch.testing.assert_close(found[:, 0], expected)
    with pytest.raises(IndexError, match="id 20 is outside its table"):
        served(torch.tensor([[20], [2], [3]]), bags)
    with pytest.raises(ConversionError, match="row 1 of a table holds values from 1e\\+06"):
        quantize(torch.tensor([[0.0], [1e6]]), "pq8")
