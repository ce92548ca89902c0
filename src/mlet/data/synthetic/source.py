"""Synthetic rows as raw data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from mlet.data.source import LABEL, PROBABILITY, RawColumns, dense_column, field_column
from mlet.data.synthetic.config import SyntheticConfig
from mlet.data.synthetic.features import FeatureLaw
from mlet.data.synthetic.truth import Truth

_BLOCK_ROWS = 250_000
_PILOT_ROWS = 100_000
#: Streams of random numbers that must not overlap.
_PARAMETERS, _PILOT, _ROWS = 0, 1, 2


class SyntheticSource:
    """A `SyntheticConfig` as raw data; the same config gives the same rows."""

    default_split: Literal["random"] = "random"

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.fields = tuple(f"C{place}" for place in range(1, len(config.cardinalities) + 1))
        self.dense = tuple(f"I{place}" for place in range(1, config.dense + 1))
        self.columns = RawColumns(
            dense=dict.fromkeys(self.dense, "log"), categorical=self.fields, probability=True
        )
        self.description = f"synthetic: {config.model_dump_json()}"

    def frames(self) -> Iterator[pl.DataFrame]:
        """See `mlet.data.source.RawSource`; also the true ``probability``."""
        for block, start in enumerate(range(0, self.config.rows, _BLOCK_ROWS)):
            rows = min(_BLOCK_ROWS, self.config.rows - start)
            generator = self._generator(_ROWS, block)
            features = self._law.draw(generator, rows)
            probability = self._truth.probabilities(features)
            labels = (generator.random(rows) < probability).astype(np.uint8)
            columns = {LABEL: pl.Series(labels), PROBABILITY: pl.Series(probability)}
            for place, name in enumerate(self.fields):
                columns[field_column(name)] = _names(features.categories[place], place)
            for name, counts in zip(self.dense, features.counts, strict=True):
                columns[dense_column(name)] = pl.Series(counts, nan_to_null=True)
            yield pl.DataFrame(columns)

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *stream])

    @cached_property
    def _law(self) -> FeatureLaw:
        return FeatureLaw(self.config)

    @cached_property
    def _truth(self) -> Truth:
        pilot = self._law.draw(self._generator(_PILOT), _PILOT_ROWS)
        return Truth(self.config, self._generator(_PARAMETERS), pilot)


def _names(ranks: npt.NDArray[np.int64], field: int) -> pl.Series:
    """Eight hexadecimal digits that hide the frequency rank.

    Multiplication by an odd number and xor with a shift are bijections of 32-bit numbers, so
    distinct categories of a field keep distinct names.
    """
    distinct, inverse = np.unique(ranks, return_inverse=True)
    code = distinct.astype(np.uint32) ^ np.uint32((field * 0x9E3779B9) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        code = (code ^ (code >> np.uint32(shift))) * np.uint32(factor)
    code ^= code >> np.uint32(16)
    return pl.Series([f"{value:08x}" for value in code.tolist()]).gather(inverse)
