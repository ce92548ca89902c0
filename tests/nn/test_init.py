"""The initialisations have the distributions they state."""

from __future__ import annotations

import pytest
import torch

from mlet.nn.init import paper_, single_layer_, variance_matched_


def factors(n: int = 2_000, k: int = 64, d: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.empty(n, k, dtype=torch.float64), torch.empty(k, d, dtype=torch.float64)


def test_paper() -> None:
    inner, projection = factors()
    paper_(inner, projection)
    assert inner.abs().max() <= 2_000**-0.5
    assert inner.var().item() == pytest.approx(1 / (3 * 2_000), rel=0.02)
    assert projection.std().item() == pytest.approx(0.25, rel=0.1)
    # k/16 times the variance of a single-layer table
    assert (inner @ projection).var().item() == pytest.approx(64 / 16 / (3 * 2_000), rel=0.2)


@pytest.mark.parametrize("k", [8, 64, 256])
def test_variance_matched_gives_the_variance_of_a_single_layer_table(k: int) -> None:
    inner, projection = factors(k=k)
    variance_matched_(inner, projection)
    single = torch.empty(2_000, 16, dtype=torch.float64)
    single_layer_(single)
    assert (inner @ projection).var().item() == pytest.approx(single.var().item(), rel=0.25)
