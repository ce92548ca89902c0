"""A click generator with known truth: long-tailed categories, clustered latent vectors.

A row draws one category in each of F fields, by a Zipf law, and D dense features. With
``z_f ∈ R^r`` the latent vector of the row's category in field f and ``x`` the scaled dense
features, the click probability is ``σ(b + s · t)``, where::

    t = Σ_f ⟨u_f, z_f⟩  +  Σ_{f<g} a_fg ⟨z_f, z_g⟩  +  ⟨β, x⟩

A category's latent vector is the centre of its cluster plus noise of its own,
``z = sqrt(1 − ν) · centre + sqrt(ν) · noise``, so that rare categories resemble others of which
more is known. ``s`` and ``b`` give the logits the standard deviation and the click rate asked for.
The labels are drawn from the probabilities, which are kept: no model can, on average, rank or
predict better than they do. Nothing here depends on how embeddings are trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, field_validator
from scipy.special import expit, ndtri

from mlet.atomic import atomic_path
from mlet.data.prepare import Report
from mlet.data.source import LABEL, PROBABILITY, RawColumns, dense_column, field_column
from mlet.errors import ConfigError
from mlet.settings import Settings

Floats = npt.NDArray[np.float64]

_BLOCK_ROWS = 250_000
_PILOT_ROWS = 100_000
#: Streams of random numbers that must not overlap.
_PARAMETERS, _PILOT, _ROWS = 0, 1, 2
#: Log-normal location and scale of the dense counts, and their share of missing values.
_DENSE_MEAN, _DENSE_STD, _DENSE_MISSING = 1.5, 1.0, 0.05

#: Cardinalities of the 26 fields of Criteo-Kaggle, as published with DLRM (arXiv 1906.00091).
CRITEO_CARDINALITIES = [
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
]


class SyntheticConfig(Settings):
    """Shape and difficulty of the generated data.

    Attributes:
        rows: rows in all splits together.
        cardinalities: number of possible categories of each field.
        dense: number of dense features D.
        zipf: exponent of the Zipf law; category i of a field has probability ∝ (i + 1)^−zipf.
        clusters: cluster centres of a field.
        rank: dimension r of the latent vectors.
        noise: share ν of a category's own part in the variance of its latent vector, 0 to 1.
        signal: standard deviation of the logits; larger means a higher attainable AUC.
        click_rate: mean click probability.
        seed: of everything.
    """

    rows: int = Field(120_000, ge=100)
    cardinalities: list[int] = Field([20_000, 8_000, 3_000, 1_000, 400, 100, 30, 10], min_length=1)
    dense: int = Field(4, ge=0)
    zipf: float = Field(1.1, ge=0)
    clusters: int = Field(16, ge=1)
    rank: int = Field(4, ge=1)
    noise: float = Field(0.3, ge=0, le=1)
    signal: float = Field(2.0, gt=0)
    click_rate: float = Field(0.25, gt=0, lt=1)
    seed: int = Field(0, ge=0)

    @field_validator("cardinalities")
    @classmethod
    def _positive(cls, value: list[int]) -> list[int]:
        if min(value) < 1 or max(value) > 2**32:
            raise ValueError("every cardinality must lie between 1 and 2^32")
        return value


def preset(name: Literal["default", "criteo"], **changes: object) -> SyntheticConfig:
    """The embedded default, or Criteo-Kaggle's shape (26 fields, 13 dense) for speed work."""
    shape = {"cardinalities": CRITEO_CARDINALITIES, "dense": 13} if name == "criteo" else {}
    return SyntheticConfig.parse(shape | changes, "synthetic data")


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
            generator = np.random.default_rng([self.config.seed, _ROWS, block])
            categories, counts = self._draw(generator, rows)
            probability = expit(self._bias + self._scale * self._score(categories, counts))
            labels = (generator.random(rows) < probability).astype(np.uint8)
            columns = {LABEL: pl.Series(labels), PROBABILITY: pl.Series(probability)}
            for place, name in enumerate(self.fields):
                columns[field_column(name)] = _names(categories[place], place)
            for place, name in enumerate(self.dense):
                columns[dense_column(name)] = pl.Series(counts[place], nan_to_null=True)
            yield pl.DataFrame(columns)

    def _draw(
        self, generator: np.random.Generator, rows: int
    ) -> tuple[list[npt.NDArray[np.int64]], list[Floats]]:
        """Categories of each field by frequency rank, and dense counts (NaN where missing)."""
        categories = [
            np.minimum(
                np.searchsorted(cumulative, generator.random(rows), side="right"),
                len(cumulative) - 1,
            )
            for cumulative in self._cumulative
        ]
        counts = []
        for _ in range(self.config.dense):
            normal = generator.standard_normal(rows)
            count = np.floor(np.exp(_DENSE_MEAN + _DENSE_STD * normal))
            count[generator.random(rows) < _DENSE_MISSING] = np.nan
            counts.append(count)
        return categories, counts

    @cached_property
    def _cumulative(self) -> list[Floats]:
        """The fields' Zipf distribution functions."""
        result = []
        for size in self.config.cardinalities:
            cumulative = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -self.config.zipf)
            result.append(cumulative / cumulative[-1])
        return result

    @cached_property
    def _parameters(self) -> tuple[list[Floats], Floats, Floats, Floats]:
        """Cluster centres of each field, ``u`` (F × r), ``a`` (F × F), ``β`` (D,)."""
        config, fields = self.config, len(self.config.cardinalities)
        generator = np.random.default_rng([config.seed, _PARAMETERS])
        centres = [generator.standard_normal((config.clusters, config.rank)) for _ in range(fields)]
        linear = generator.standard_normal((fields, config.rank)) / np.sqrt(config.rank)
        pairs = np.triu(generator.standard_normal((fields, fields)), 1)
        pairs *= generator.random((fields, fields)) < 0.5
        # Per pair the inner product has variance r; together the pairs weigh as the fields do.
        pairs *= np.sqrt(fields / max(np.sum(pairs**2) * config.rank, 1e-12))
        return centres, linear, pairs, generator.standard_normal(config.dense) * 0.5

    def _score(self, categories: list[npt.NDArray[np.int64]], counts: list[Floats]) -> Floats:
        """The score t of every row (N,)."""
        _, linear, pairs, weights = self._parameters
        latent = [self._latent(place, ranks) for place, ranks in enumerate(categories)]
        score = np.zeros(len(latent[0]))
        for place, vectors in enumerate(latent):
            score += vectors @ linear[place]
            partners = np.flatnonzero(pairs[place])
            if len(partners):
                mixed = sum(pairs[place, other] * latent[other] for other in partners)
                score += np.einsum("nr,nr->n", vectors, mixed)
        for weight, count in zip(weights, counts, strict=True):
            known = np.log1p(np.nan_to_num(count, nan=0.0))
            score += weight * (known - _DENSE_MEAN) / _DENSE_STD
        return score

    def _latent(self, field: int, ranks: npt.NDArray[np.int64]) -> Floats:
        """Latent vectors (N × r): functions of seed, field and category, not stored anywhere."""
        config = self.config
        distinct, inverse = np.unique(ranks, return_inverse=True)
        keys = distinct.astype(np.uint64) + np.uint64((field + 1) << 40)
        keys ^= _mix(np.array([config.seed], np.uint64))
        cluster = _mix(keys) % np.uint64(config.clusters)
        centre = self._parameters[0][field][cluster.astype(np.int64)]
        coordinates = np.arange(1, config.rank + 1, dtype=np.uint64) << np.uint64(50)
        bits = _mix(keys[:, None] ^ _mix(coordinates))
        noise = ndtri(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
        vectors = np.sqrt(1 - config.noise) * centre + np.sqrt(config.noise) * noise
        return np.asarray(vectors[inverse], np.float64)

    @cached_property
    def _pilot(self) -> Floats:
        generator = np.random.default_rng([self.config.seed, _PILOT])
        return self._score(*self._draw(generator, _PILOT_ROWS))

    @cached_property
    def _scale(self) -> float:
        return float(self.config.signal / max(self._pilot.std(), 1e-12))

    @cached_property
    def _bias(self) -> float:
        # Imported on use: it takes longer to load than most commands take to run.
        from scipy.optimize import brentq

        scaled = self._scale * self._pilot
        reach = 50.0 + float(np.abs(scaled).max())

        def excess(bias: float) -> float:
            return float(expit(bias + scaled).mean() - self.config.click_rate)

        return float(brentq(excess, -reach, reach))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): 64 well-mixed bits of each value."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(values ^ (values >> np.uint64(31)), np.uint64)


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


def write_criteo_tsv(source: SyntheticSource, path: Path, report: Report) -> None:
    """Write the rows as Criteo publishes its own: label, dense counts, categories; tab-separated.

    Raises:
        ConfigError: the source has not Criteo's 13 dense features and 26 fields.
    """
    if (len(source.dense), len(source.fields)) != (13, 26):
        raise ConfigError("Criteo's format has 13 dense features and 26 fields: use preset criteo")
    dense = [pl.col(dense_column(name)).cast(pl.Int64) for name in source.dense]
    done = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for frame in source.frames():
            columns = frame.select(LABEL, *dense, *map(field_column, source.fields))
            columns.write_csv(file, include_header=False, separator="\t")
            done += len(frame)
            report("writing", done, source.config.rows)
