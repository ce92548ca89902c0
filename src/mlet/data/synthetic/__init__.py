"""A click generator with known truth: long-tailed categories, clustered latent vectors.

A row draws one category in each of F fields, by a Zipf law, and D dense features
(`mlet.data.synthetic.features`). Its click probability is a known function of them
(`mlet.data.synthetic.truth`); the labels are drawn from it, and it is kept: no model can, on
average, rank or predict better.
"""

from mlet.data.synthetic.config import (
    CRITEO_CARDINALITIES,
    PresetName,
    SyntheticConfig,
    preset,
)
from mlet.data.synthetic.source import SyntheticSource

__all__ = ["CRITEO_CARDINALITIES", "PresetName", "SyntheticConfig", "SyntheticSource", "preset"]
