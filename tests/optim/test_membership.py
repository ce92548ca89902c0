"""Optimizers that were made before the model was converted are noticed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mlet
from mlet.errors import MletError


def model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(30, 4), nn.Linear(4, 1))


def test_an_optimizer_made_before_conversion() -> None:
    made = model()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    mlet.optim.check_optimizers(made, optimizer)  # there is nothing two-layer yet
    mlet.convert(made)
    with pytest.raises(
        MletError,
        match=r"not train 0\.inner, 0\.projection and holds 1 parameters .* after mlet\.convert",
    ):
        mlet.optim.check_optimizers(made, optimizer)


def test_optimizers_that_hold_all_of_it() -> None:
    made = mlet.convert(model())
    mlet.optim.check_optimizers(made, torch.optim.Adam(made.parameters()))
    mlet.optim.check_optimizers(made, mlet.optim.fused(torch.optim.Adam, made))
    rows, rest = [made[0].inner], [made[0].projection, *made[1].parameters()]
    both = (torch.optim.SparseAdam(rows), torch.optim.Adam(rest))
    mlet.optim.check_optimizers(made, *both)
    with pytest.raises(MletError, match=r"does not train 0\.inner:"):
        mlet.optim.check_optimizers(made, both[1])
    made[0].inner.requires_grad_(False)
    mlet.optim.check_optimizers(made, both[1])


def test_an_optimizer_of_another_model() -> None:
    made, other = mlet.convert(model()), mlet.convert(model())
    with pytest.raises(MletError, match=r"does not train .* and holds 4 parameters"):
        mlet.optim.check_optimizers(made, torch.optim.Adam(other.parameters()))
