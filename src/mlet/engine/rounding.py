"""Stochastic rounding of float32 to 16 bits: unbiased, so that small updates are not lost.

A float32 x between its two 16-bit neighbours a < x < b becomes b with probability
``(x − a)/(b − a)``, else a; its expectation is x. (Rounding to nearest would lose every update
below half a unit in the last place: with bfloat16, any that moves a weight by less than 0.2 %.)

Both formats keep a prefix of float32's significand, so adding a random integer below one unit of
the prefix and cutting off the rest is the whole of it. float16 has a shorter exponent; multiplying
by 2⁻¹¹² moves its range, denormals included, onto the lowest part of float32's.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HALF_SHIFT = 2.0**-112


def stochastic_round(
    values: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
) -> Tensor:
    """Round float32 ``values`` to ``dtype`` (bfloat16 or float16) at random, without bias.

    NaN and infinity keep their meaning.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"stochastic rounding is to bfloat16 or float16, not {dtype}")
    dropped = 16 if dtype is torch.bfloat16 else 13
    scaled = values if dtype is torch.bfloat16 else values * _HALF_SHIFT
    noise = torch.randint(
        1 << dropped,
        values.shape,
        dtype=torch.int32,
        device=values.device,
        generator=generator,
    )
    kept = (scaled.contiguous().view(torch.int32) + noise) & -(1 << dropped)
    rounded = kept.view(torch.float32)
    if dtype is torch.float16:
        rounded = rounded / _HALF_SHIFT
    return torch.where(torch.isfinite(values), rounded, values).to(dtype)


def compute_dtype(table: Tensor) -> torch.dtype:
    """What a table is computed in: float32 where it is kept in 16 bits, else its own dtype."""
    return torch.float32 if table.dtype in (torch.bfloat16, torch.float16) else table.dtype
