"""Rows that rare categories share, against a layer whose ids are mapped by hand."""

from __future__ import annotations

import pytest
import torch

from mlet.nn import Bags, Field, FieldEmbedding
from mlet.nn.compression import PRECISIONS, Hashing
from mlet.nn.compression.hashing import hash_ids
from mlet.nn.rare_rows import RareRows

#: Categories, of their own, shared.
SIZES = {"user": (1_000, 100, 4), "item": (50, 49, 1), "tag": (300, 20, 1)}


def layer(inner_dim: int | None) -> FieldEmbedding:
    torch.manual_seed(0)
    return FieldEmbedding(
        [
            Field("user", 1_000, 8, inner_dim, rare=RareRows(100, 4)),
            Field("item", 50, 8, inner_dim),
            Field("tag", 300, 8, inner_dim, multi_valued=True, rare=RareRows(20)),
        ]
    )


def plain(inner_dim: int | None) -> FieldEmbedding:
    torch.manual_seed(0)
    rows = {"user": 104, "item": 50, "tag": 21}
    return FieldEmbedding(
        [Field(name, n, 8, inner_dim, multi_valued=name == "tag") for name, n in rows.items()]
    )


def row(place: int, name: str, category: int) -> int:
    _, own, shared = SIZES[name]
    if 1 <= category <= own:
        return category + shared - 1
    return int(hash_ids(torch.tensor([category]), place, shared))


@pytest.mark.parametrize("inner_dim", [None, 16])
def test_what_is_looked_up_and_learnt_is_that_of_the_mapped_rows(inner_dim: int | None) -> None:
    shares, mapped = layer(inner_dim), plain(inner_dim)
    ids = torch.tensor([[0, 0], [1, 1], [100, 49], [101, 3], [999, 7], [500, 0]])
    tags = torch.tensor([0, 1, 20, 21, 299, 5])
    offsets = torch.arange(7)
    rows = torch.tensor(
        [[row(p, n, int(c)) for p, (n, c) in enumerate(zip(SIZES, r, strict=False))] for r in ids]
    )
    tag_rows = torch.tensor([row(2, "tag", int(c)) for c in tags])
    found = shares(ids, {"tag": Bags(tags, offsets)})
    expected = mapped(rows, {"tag": Bags(tag_rows, offsets)})
    assert found.equal(expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(shares.parameters(), mapped.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.to_dense().equal(theirs.grad.to_dense())
    assert shares.table("user").shape == (1_000, 8)
    assert shares.table("user")[999].equal(mapped.table("user")[row(0, "user", 999)])
    assert len({row(0, "user", c) for c in range(101, 1_000)}) == 4, "all shared rows are used"
    for precision in PRECISIONS:
        served, other = shares.collapse(precision), mapped.collapse(precision)
        assert served(ids, {"tag": Bags(tags, offsets)}).equal(
            other(rows, {"tag": Bags(tag_rows, offsets)})
        )
        sizes = [sum(t.nbytes for t in one.state_dict().values()) for one in (served, other)]
        assert sizes[0] == sizes[1], "nothing is kept for what is shared"


def test_ids_outside_the_categories_are_refused() -> None:
    shares = layer(None)
    bags = {"tag": Bags(torch.tensor([1]), torch.tensor([0, 1]))}
    for wrong in (1_000, -1):
        with pytest.raises(IndexError, match=f"field 'user': id {wrong} is outside its table of"):
            shares(torch.tensor([[wrong, 0]]), bags)
    wide = {"tag": Bags(torch.tensor([300]), torch.tensor([0, 1]))}
    with pytest.raises(IndexError, match="field 'tag': id 300 is outside its table of 300"):
        shares(torch.tensor([[1, 0]]), wide)


def test_what_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="field 'x': a compressed table has no rare rows"):
        FieldEmbedding([Field("x", 9, 2, compression=Hashing(), rare=RareRows(3))])
    with pytest.raises(ValueError, match="rare rows: -1 own and 1 shared"):
        RareRows(-1)
