"""Post-training quantization: rows of 8- or 4-bit codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from mlet.errors import ConversionError
from mlet.nn.field_tables import ComputedTables

#: What served tables are kept in: float32, or codes.
Precision: TypeAlias = Literal["float32", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_LEVELS: dict[str, int] = {"int8": 255, "int4": 15}
#: As FBGEMM serves them: float32 scale and bias beside 8-bit rows, float16 ones beside 4-bit rows.
_SCALES: dict[str, torch.dtype] = {"int8": torch.float32, "int4": torch.float16}


@torch.no_grad()
def quantize(table: Tensor, precision: Precision) -> dict[str, Tensor]:
    """Uniform quantization of each row between its smallest and its largest value.

    ``W[i, j] ≈ scale_i · code_ij + bias_i``, with scale ``(max − min) / levels`` and bias ``min``
    (Guan et al. 2019, arXiv 1911.02079, section 3, asymmetric), so that no value moves by more than
    half a scale, but for the rounding of scale and bias themselves.

    Args:
        table: n × d.
        precision: ``int8`` (255 steps) or ``int4`` (15 steps, two codes to a byte).

    Returns:
        ``codes`` (n × d, or n × ⌈d / 2⌉ for int4; uint8), ``scale`` and ``bias`` (n).

    Raises:
        ConversionError: scale or bias of a row is beyond the range of its dtype, or no number.
    """
    levels = _LEVELS[precision]
    low, high = table.aminmax(dim=1)
    scale = ((high - low) / levels).to(_SCALES[precision])
    bias = low.to(_SCALES[precision])
    wrong = torch.nonzero(~(torch.isfinite(scale) & torch.isfinite(bias))).flatten()
    if len(wrong):
        row = int(wrong[0])
        raise ConversionError(
            f"row {row} of a table holds values from {float(low[row]):.3g} to "
            f"{float(high[row]):.3g}, beyond what {precision} rows are scaled by ({scale.dtype}); "
            f"choose another precision"
        )
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).to(table.dtype)
    codes = ((table - bias.to(table.dtype)[:, None]) / step[:, None]).round().clamp(0, levels)
    codes = codes.to(torch.uint8)
    if precision == "int4":
        if codes.shape[1] % 2:
            codes = nn.functional.pad(codes, (0, 1))
        codes = codes[:, ::2] | (codes[:, 1::2] << 4)
    return {"codes": codes.contiguous(), "scale": scale, "bias": bias}


class QuantizedTables(ComputedTables):
    """Ordinary tables as codes; they serve, and cannot be trained.

    Args:
        sizes: n of each field, by name.
        dim: d.
        precision: of the codes.
    """

    def __init__(self, sizes: Mapping[str, int], dim: int, precision: Precision) -> None:
        super().__init__(sizes)
        self.dim, self.precision = dim, precision
        for place, size in enumerate(sizes.values()):
            for part, tensor in quantize(torch.zeros(size, dim), precision).items():
                self.register_buffer(f"{part}{place}", tensor)

    def parts(self, name: str) -> dict[str, Tensor]:
        """Codes, scale and bias."""
        place = self.stack.names.index(name)
        return {part: self.get_buffer(f"{part}{place}") for part in ("codes", "scale", "bias")}

    def vectors(self, name: str, ids: Tensor) -> Tensor:
        """The rows decoded, (U, d) float32."""
        codes, scale, bias = (part[ids] for part in self.parts(name).values())
        if self.precision == "int4":
            codes = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)[:, : self.dim]
        return codes.float() * scale.float().unsqueeze(1) + bias.float().unsqueeze(1)
