"""Checkpoints of ordinary layers in two-layer ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mlet


class Tied(nn.Module):
    """Scores of all words, by the table that embeds them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6, padding_idx=2)
        self.head = nn.Linear(6, 20)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).sum(dim=1))


def plain() -> nn.ModuleDict:
    bags = nn.EmbeddingBag(12, 3, mode="sum", padding_idx=1)
    return nn.ModuleDict({"a": nn.Embedding(30, 4), "b": bags, "rest": nn.Linear(4, 1)})


@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_checkpoint_loads_strictly(assign: bool) -> None:
    trained, made = plain(), mlet.convert(plain(), 16)
    made.load_state_dict(trained.state_dict(), assign=assign)
    for name in ("a", "b"):
        torch.testing.assert_close(made[name].weight, trained[name].weight)
        assert made[name].inner.requires_grad
    assert torch.equal(made["rest"].weight, trained["rest"].weight)
    # It is a table like any other: its own checkpoints load as they are, and it collapses.
    again = mlet.convert(plain(), 16)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again["a"].inner, made["a"].inner)
    torch.testing.assert_close(mlet.collapse(again)["b"].weight, trained["b"].weight)


def test_tied_tables() -> None:
    trained, made = Tied(), mlet.convert(Tied(), 16, tied="together")
    made.load_state_dict(trained.state_dict())
    ids = torch.randint(20, (5, 3))
    torch.testing.assert_close(made(ids), trained(ids))
    assert made.head.inner is made.words.inner
    torch.testing.assert_close(made.words.weight, trained.words.weight)


def test_an_optimizer_goes_on_with_the_loaded_table() -> None:
    made = mlet.convert(plain(), 16)
    optimizer = mlet.optim.fused(torch.optim.SGD, made, lr=0.1)
    made.load_state_dict(plain().state_dict())
    before = made["a"].inner.detach().clone()
    made["a"](torch.tensor([7])).sum().backward()
    optimizer.step()
    moved = (made["a"].inner != before).any(dim=1)
    assert moved.nonzero().tolist() == [[7]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.weight": torch.zeros(31, 4)}, r"size mismatch for a\.weight: .*\(31, 4\).*\(30, 4\)"),
        ({"a.weight": "text"}, r"size mismatch for a\.weight"),
        ({"a.inner": torch.zeros(30, 16)}, r'Missing key\(s\) in state_dict: "a\.projection"'),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    made = mlet.convert(plain(), 16)
    with pytest.raises(RuntimeError, match=message):
        made.load_state_dict({**plain().state_dict(), **change})


@pytest.mark.filterwarnings("ignore:.*is not above embedding_dim")
def test_a_product_too_narrow_for_any_table() -> None:
    with pytest.raises(RuntimeError, match="inner_dim=2 cannot hold the 4 dimensions"):
        mlet.Embedding(30, 4, inner_dim=2).load_state_dict(nn.Embedding(30, 4).state_dict())


def test_the_default_inner_dimension_follows_the_width() -> None:
    made = mlet.convert(
        nn.ModuleList([nn.Embedding(9, 4), nn.Embedding(9, 16), nn.Embedding(9, 50)])
    )
    assert [table.inner_dim for table in made] == [64, 64, 200]
