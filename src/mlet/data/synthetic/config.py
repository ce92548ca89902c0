"""Shape and difficulty of synthetic click data."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field, field_validator

from mlet.settings import Settings

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


PresetName: TypeAlias = Literal["default", "user-item", "criteo"]

_PRESETS: dict[PresetName, dict[str, object]] = {
    "default": {},
    # As where people choose among items: most of the label is in which of them meet.
    "user-item": {
        "rows": 400_000,
        "cardinalities": [20_000, 5_000],
        "dense": 0,
        "zipf": 0.7,
        "clusters": 64,
        "rank": 8,
        "noise": 0.2,
        "signal": 4.0,
        "click_rate": 0.3,
    },
    # Criteo-Kaggle's shape, for speed work.
    "criteo": {"cardinalities": CRITEO_CARDINALITIES, "dense": 13},
}


def preset(name: PresetName, **changes: object) -> SyntheticConfig:
    """The embedded default; ``user-item``, two fields of sparse categories (the demo's); or
    ``criteo``, 26 fields and 13 dense features."""
    return SyntheticConfig.parse(_PRESETS[name] | changes, "synthetic data")
