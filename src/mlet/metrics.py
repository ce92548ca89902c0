"""AUC, logloss and calibration, of rows and of resampled rows."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_Number = TypeVar("_Number", bound=np.floating[Any])

#: Probabilities are kept this far from 0 and 1 when their logarithm is taken.
_CLIP = 1e-12


def taken(
    weights: npt.NDArray[_Number] | None, rows: npt.NDArray[np.generic] | slice
) -> npt.NDArray[_Number] | None:
    """The weights of some rows, by place or by a mask; none where all rows count alike."""
    return None if weights is None else weights[rows]


class Scores(NamedTuple):
    """Quality of predicted click probabilities on some rows, each with its weight where they have.

    Attributes:
        auc: area under the ROC curve; NaN where the rows have only one label.
        logloss: mean negative log-likelihood, in nats.
        calibration: predicted over observed clicks; 1 is calibrated, NaN without clicks.
    """

    auc: float
    logloss: float
    calibration: float


def score(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Scores:
    """Score probabilities (N,) against labels (N,) of 0 and 1.

    With weights (N,) the AUC is the share of the pairs of a click and another row, weighing the
    product of theirs, that are in order; logloss is a weighted mean.
    """
    # Imported on use: loading scikit-learn takes longer than most commands.
    from sklearn.metrics import log_loss, roc_auc_score

    y = np.asarray(labels, np.float64)
    p = np.clip(np.asarray(probabilities, np.float64), _CLIP, 1 - _CLIP)
    w = None if weights is None else np.asarray(weights, np.float64)
    total = len(y) if w is None else w.sum()
    if not total:
        return Scores(np.nan, np.nan, np.nan)
    clicks = y.sum() if w is None else w @ y
    both = 0 < clicks < total and (w is None or w @ (1 - y) > 0)
    auc = float(roc_auc_score(y, p, sample_weight=w)) if both else np.nan
    predicted = p.sum() if w is None else w @ p
    calibration = float(predicted / clicks) if clicks else np.nan
    return Scores(auc, float(log_loss(y, p, labels=[0, 1], sample_weight=w)), calibration)


def row_losses(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> Floats:
    """The negative log-likelihood of each row (N,), in nats."""
    y = np.asarray(labels, np.float64)
    p = np.clip(np.asarray(probabilities, np.float64), _CLIP, 1 - _CLIP)
    losses: Floats = -np.where(y > 0, np.log(p), np.log1p(-p))
    return losses


class Interval(NamedTuple):
    """A two-sided interval."""

    low: float
    high: float


def percentile_interval(values: Floats, confidence: float = 0.95) -> Interval:
    """The middle ``confidence`` of the values, NaN left out; NaN if there are none."""
    tail = 100 * (1 - confidence) / 2
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(np.nan, np.nan)
    low, high = np.percentile(known, [tail, 100 - tail])
    return Interval(float(low), float(high))


def resampled_scores(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    samples: int,
    seed: int = 0,
    weights: npt.ArrayLike | None = None,
) -> Floats:
    """`Scores` of ``samples`` resamples of the rows: (samples, 3), in the order of its fields.

    The resamples depend on the number of rows and on ``seed`` only, so those of two models on the
    same rows are paired: subtract them for the distribution of a difference.

    Rows are sorted by prediction once; a resample is a vector of multiplicities, so its AUC is a
    cumulative sum: the Mann–Whitney statistic with ties counted half.
    """
    y = np.asarray(labels, np.float64)
    p = np.clip(np.asarray(probabilities, np.float64), _CLIP, 1 - _CLIP)
    w = None if weights is None else np.asarray(weights, np.float64)
    draws = np.full((samples, len(Scores._fields)), np.nan)
    if not len(y):
        return draws
    order = np.argsort(p, kind="stable")
    y, p, w = y[order], p[order], taken(w, order)
    starts = np.flatnonzero(np.concatenate([[True], p[1:] != p[:-1]]))
    losses = row_losses(y, p)
    generator = np.random.default_rng(seed)
    for sample in range(samples):
        drawn = np.bincount(generator.integers(len(y), size=len(y)), minlength=len(y))[order]
        masses = drawn if w is None else drawn * w
        mass = len(y) if w is None else masses.sum()
        if not mass:  # all that was drawn weighs nothing
            continue
        clicks = np.add.reduceat(masses * y, starts)
        others = np.add.reduceat(masses * (1 - y), starts)
        total, rest = clicks.sum(), others.sum()
        below = np.cumsum(others) - others
        pairs = float(clicks @ (below + others / 2))
        auc = pairs / (total * rest) if total and rest else np.nan
        calibration = (masses @ p) / total if total else np.nan
        draws[sample] = (auc, (masses @ losses) / mass, calibration)
    return draws
