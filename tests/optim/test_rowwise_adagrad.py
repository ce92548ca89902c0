"""`mlet.optim.RowWiseAdagrad` of whole models: parameters of any shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlet.optim import RowWiseAdagrad


@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (5, 3, 2)])
def test_a_row_has_the_mean_of_its_squares(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mine = nn.Parameter(torch.randn(shape))
    theirs = mine.detach().clone()
    optimizer = RowWiseAdagrad([mine], lr=0.1)
    rows = theirs.numel() if len(shape) < 2 else shape[0]
    sums = torch.zeros(rows)
    for step in range(3):
        mine.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        grad = mine.grad.reshape(rows, -1)
        sums += grad.square().mean(1)
        theirs -= (0.1 * grad / (sums.sqrt() + 1e-8).unsqueeze(1)).reshape(shape)
        torch.testing.assert_close(mine.detach(), theirs)
    assert optimizer.state[mine]["sum"].shape == shape[:1]
