"""The click probability of a row, known exactly.

With ``z_f ∈ R^r`` the latent vector of the row's category in field f and ``x`` the scaled dense
features, it is ``σ(b + s · t)``, where::

    t = Σ_f ⟨u_f, z_f⟩  +  Σ_{f<g} a_fg ⟨z_f, z_g⟩  +  ⟨β, x⟩

A category's latent vector is the centre of its cluster plus noise of its own,
``z = sqrt(1 − ν) · centre + sqrt(ν) · noise``, so that rare categories resemble others of which
more is known. ``s`` and ``b`` give the logits the standard deviation and the click rate asked for.
Nothing here depends on how embeddings are trained.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from mlet.data.synthetic.config import SyntheticConfig
from mlet.data.synthetic.features import Features, Floats, standardised


class Truth:
    """The law of the labels.

    Args:
        config: the data's.
        generator: of the parameters.
        pilot: rows by which the logits get their deviation and their click rate.
    """

    def __init__(
        self, config: SyntheticConfig, generator: np.random.Generator, pilot: Features
    ) -> None:
        self._config, fields = config, len(config.cardinalities)
        self._centres = [
            generator.standard_normal((config.clusters, config.rank)) for _ in range(fields)
        ]
        self._linear = generator.standard_normal((fields, config.rank)) / np.sqrt(config.rank)
        pairs = np.triu(generator.standard_normal((fields, fields)), 1)
        pairs *= generator.random((fields, fields)) < 0.5
        # Per pair the inner product has variance r; together the pairs weigh as the fields do.
        pairs *= np.sqrt(fields / max(np.sum(pairs**2) * config.rank, 1e-12))
        self._pairs = pairs
        self._dense = generator.standard_normal(config.dense) * 0.5
        score = self._score(pilot)
        self._scale = float(config.signal / max(score.std(), 1e-12))
        self._bias = _bias_for(config.click_rate, self._scale * score)

    def probabilities(self, rows: Features) -> Floats:
        """Of a click (N,)."""
        return np.asarray(expit(self._bias + self._scale * self._score(rows)), np.float64)

    def _score(self, rows: Features) -> Floats:
        """The score t (N,)."""
        latent = [self._latent(place, ranks) for place, ranks in enumerate(rows.categories)]
        score = np.zeros(len(latent[0]))
        for place, vectors in enumerate(latent):
            score += vectors @ self._linear[place]
            partners = np.flatnonzero(self._pairs[place])
            if len(partners):
                mixed = sum(self._pairs[place, other] * latent[other] for other in partners)
                score += np.einsum("nr,nr->n", vectors, mixed)
        for weight, count in zip(self._dense, rows.counts, strict=True):
            score += weight * standardised(count)
        return score

    def _latent(self, field: int, ranks: npt.NDArray[np.int64]) -> Floats:
        """Latent vectors (N × r): functions of seed, field and category, not stored anywhere."""
        config = self._config
        distinct, inverse = np.unique(ranks, return_inverse=True)
        keys = distinct.astype(np.uint64) + np.uint64((field + 1) << 40)
        keys ^= _mix(np.array([config.seed], np.uint64))
        cluster = _mix(keys) % np.uint64(config.clusters)
        centre = self._centres[field][cluster.astype(np.int64)]
        coordinates = np.arange(1, config.rank + 1, dtype=np.uint64) << np.uint64(50)
        bits = _mix(keys[:, None] ^ _mix(coordinates))
        noise = ndtri(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
        vectors = np.sqrt(1 - config.noise) * centre + np.sqrt(config.noise) * noise
        return np.asarray(vectors[inverse], np.float64)


def _bias_for(click_rate: float, scaled: Floats) -> float:
    """The bias at which scaled scores give the click rate."""
    # Imported on use: it takes longer to load than most commands take to run.
    from scipy.optimize import brentq

    reach = 50.0 + float(np.abs(scaled).max())

    def excess(bias: float) -> float:
        return float(expit(bias + scaled).mean() - click_rate)

    return float(brentq(excess, -reach, reach))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): 64 well-mixed bits of each value."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(values ^ (values >> np.uint64(31)), np.uint64)
