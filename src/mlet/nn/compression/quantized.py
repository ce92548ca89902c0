"""Post-training quantization: rows of float16 numbers, or of codes of 8 bits and fewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from mlet.errors import ConversionError
from mlet.nn.compression.codebooks import ProductTables, product_codes
from mlet.nn.field_tables import ComputedTables

#: What served tables are kept in: floating-point numbers; codes with a scale and a bias for each
#: row; or codes into codebooks of the table, 8, 4 or 2 bits for a number.
Precision: TypeAlias = Literal["float32", "float16", "int8", "int4", "pq8", "pq4", "pq2"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: Columns that share a one-byte code.
_CODE_WIDTHS: dict[str, int] = {"pq8": 1, "pq4": 2, "pq2": 4}

_LEVELS: dict[str, int] = {"int8": 255, "int4": 15}
#: As FBGEMM serves them: float32 scale and bias beside 8-bit rows, float16 ones beside 4-bit rows.
_SCALES: dict[str, torch.dtype] = {"int8": torch.float32, "int4": torch.float16}


@torch.no_grad()
def quantize(table: Tensor, precision: Precision) -> dict[str, Tensor]:
    """A table in less memory: rounded, or by uniform quantization of each row between its smallest
    and its largest value.

    ``W[i, j] ≈ scale_i · code_ij + bias_i``, with scale ``(max − min) / levels`` and bias ``min``
    (Guan et al. 2019, arXiv 1911.02079, section 3, asymmetric), so that no value moves by more than
    half a scale, but for the rounding of scale and bias themselves.

    Args:
        table: n × d.
        precision: ``float16``; ``int8`` (255 steps) or ``int4`` (15 steps, two codes to a byte);
            ``pq8``, ``pq4`` or ``pq2``: see `mlet.nn.compression.codebooks`.

    Returns:
        ``weight`` (n × d, float16); or ``codes`` (n × d, or n × ⌈d / 2⌉ for int4; uint8), ``scale``
        and ``bias`` (n); or what `product_codes` gives.

    Raises:
        ConversionError: a value of a row, or its scale or bias, is beyond its dtype, or no number.
    """
    low, high = table.aminmax(dim=1)
    if precision == "float16":
        _check(low.half(), high.half(), low, high, precision)
        return {"weight": table.half()}
    if precision in _CODE_WIDTHS:
        _check(low.half(), high.half(), low, high, precision)
        return product_codes(table, _CODE_WIDTHS[precision])
    levels = _LEVELS[precision]
    scale = ((high - low) / levels).to(_SCALES[precision])
    bias = low.to(_SCALES[precision])
    _check(scale, bias, low, high, precision)
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).to(table.dtype)
    codes = ((table - bias.to(table.dtype)[:, None]) / step[:, None]).round().clamp(0, levels)
    codes = codes.to(torch.uint8)
    if precision == "int4":
        if codes.shape[1] % 2:
            codes = nn.functional.pad(codes, (0, 1))
        codes = codes[:, ::2] | (codes[:, 1::2] << 4)
    return {"codes": codes.contiguous(), "scale": scale, "bias": bias}


def _check(one: Tensor, other: Tensor, low: Tensor, high: Tensor, precision: Precision) -> None:
    """Refuse rows for which either number, kept in 16 or 32 bits, is none."""
    wrong = torch.nonzero(~(torch.isfinite(one) & torch.isfinite(other))).flatten()
    if len(wrong):
        row = int(wrong[0])
        raise ConversionError(
            f"row {row} of a table holds values from {float(low[row]):.3g} to "
            f"{float(high[row]):.3g}, beyond what {precision} rows are kept in ({one.dtype}); "
            f"choose another precision"
        )


def quantized_tables(
    sizes: Mapping[str, int], dim: int, precision: Precision
) -> QuantizedTables | ProductTables:
    """Tables to be filled with what `quantize` gives.

    Args:
        sizes: n of each field, by name.
        dim: d.
        precision: another one than float32.
    """
    if precision in _CODE_WIDTHS:
        return ProductTables(sizes, dim, _CODE_WIDTHS[precision])
    return QuantizedTables(sizes, dim, precision)


def of_linear_parts(precision: Precision) -> Precision:
    """What width-1 tables of a linear part are kept in, in a model of that precision.

    A scale and a bias for each row would make them larger, and they are float32 beside tables that
    have those; a code into a codebook of the table makes them a quarter of that.
    """
    return "pq8" if precision in _CODE_WIDTHS else "float32"


class QuantizedTables(ComputedTables):
    """Ordinary tables at another precision than float32, one above the other; they serve, and
    cannot be trained.

    Args:
        sizes: n of each field, by name.
        dim: d.
        precision: of the rows.
    """

    def __init__(self, sizes: Mapping[str, int], dim: int, precision: Precision) -> None:
        super().__init__(sizes)
        self.dim, self.precision = dim, precision
        empty = quantize(torch.zeros(sum(sizes.values()), dim), precision)
        self.part_names = tuple(empty)
        for part, tensor in empty.items():
            self.register_buffer(part, tensor)

    def is_plain(self, traced: bool) -> bool:
        """Always: rows are decoded sooner than it is found out which of them are the same."""
        return True

    def parts(self, name: str) -> dict[str, Tensor]:
        """Views of what `quantize` makes of a table."""
        start = self.stack.first_rows[self.stack.names.index(name)]
        rows = slice(start, start + self.sizes[name])
        return {part: self.get_buffer(part)[rows] for part in self.part_names}

    def vectors(self, name: str, ids: Tensor) -> Tensor:
        """The rows decoded, (U, d) float32."""
        return self._decoded(ids + self.stack.first_rows[self.stack.names.index(name)])

    def plain_vectors(self, ids: Tensor, first: int) -> Tensor:
        """The rows decoded, float32."""
        return self._decoded(self.bounds.rows(ids, first))

    def _decoded(self, rows: Tensor) -> Tensor:
        """Rows (…) of the stack: (… × d) float32."""
        # Not with brackets, which take several times as long.
        flat = rows.reshape(-1)
        parts = [self.get_buffer(part).index_select(0, flat) for part in self.part_names]
        if self.precision == "float16":
            return parts[0].float().view(*rows.shape, self.dim)
        codes, scale, bias = parts
        if self.precision == "int4":
            # A shift is exported to ONNX as one of signed numbers.
            codes = torch.stack([codes & 15, codes // 16], dim=2).flatten(1)[:, : self.dim]
        # In place: pages of fresh memory cost more than the arithmetic.
        vectors = codes.float()
        vectors *= scale.float().unsqueeze(1)
        vectors += bias.float().unsqueeze(1)
        return vectors.view(*rows.shape, self.dim)
