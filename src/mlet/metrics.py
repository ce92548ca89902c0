"""AUC, logloss and calibration, of rows and of resampled rows."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_Number = TypeVar("_Number", bound=np.floating[Any])

#: Probabilities are kept this far from 0 and 1 when their logarithm is taken.
CLIP = 1e-12


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
    p = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
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
    p = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
    losses: Floats = -np.where(y > 0, np.log(p), np.log1p(-p))
    return losses


class GroupAUCs(NamedTuple):
    """The AUC within each of G groups of rows that have both labels; the other groups have none.

    Attributes:
        aucs: (G,).
        masses: (G,) rows of each, or the sum of their weights: its impressions.
        rows: of all these groups.
    """

    aucs: Floats
    masses: Floats
    rows: int

    @property
    def mean(self) -> float:
        """GAUC: the mean by impressions; NaN without such a group.

        Zhu et al. 2017, "Optimized cost per click in Taobao display advertising", KDD, doi
        10.1145/3097983.3098134; Zhou et al. 2018, "Deep interest network for click-through rate
        prediction", KDD, section 6.3, doi 10.1145/3219819.3219823.
        """
        return float(self.aucs @ self.masses / self.masses.sum()) if len(self.aucs) else np.nan

    def interval(self, *, samples: int = 200, confidence: float = 0.95, seed: int = 0) -> Interval:
        """Percentile interval of the mean, from resampling groups with replacement: what varies
        independently are those, not their rows."""
        if not len(self.aucs):
            return Interval(np.nan, np.nan)
        generator, count = np.random.default_rng(seed), len(self.aucs)
        means = np.empty(samples)
        for sample in range(samples):
            drawn = np.bincount(generator.integers(count, size=count), minlength=count)
            masses = drawn * self.masses
            means[sample] = self.aucs @ masses / masses.sum()
        return percentile_interval(means, confidence)


def group_aucs(
    labels: npt.ArrayLike,
    predictions: npt.ArrayLike,
    groups: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
) -> GroupAUCs:
    """The AUC of predictions (N,) against labels (N,) of 0 and 1 within groups of rows.

    Args:
        labels, predictions: of every row.
        groups: (N,) integers, equal for rows of one group; rows with one below 0 are in none.
        weights: (N,) of rows, as `score` takes them.
    """
    g, p = np.asarray(groups), np.asarray(predictions, np.float64)
    y = np.asarray(labels, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    order = np.lexsort((p, g))
    order = order[g[order] >= 0]
    g, p, y, w = g[order], p[order], y[order], w[order]
    if not len(g):
        return GroupAUCs(np.empty(0), np.empty(0), 0)
    begins = np.concatenate([[True], g[1:] != g[:-1]])
    ties = np.flatnonzero(begins | np.concatenate([[True], p[1:] != p[:-1]]))
    clicks, others = np.add.reduceat(w * y, ties), np.add.reduceat(w * (1 - y), ties)
    starts = np.flatnonzero(begins[ties])
    sizes = np.diff(np.append(np.flatnonzero(begins), len(g)))
    before = np.cumsum(others) - others
    below = before - np.repeat(before[starts], np.diff(np.append(starts, len(ties))))
    pairs = np.add.reduceat(clicks * (below + others / 2), starts)
    positive, negative = np.add.reduceat(clicks, starts), np.add.reduceat(others, starts)
    both = (positive > 0) & (negative > 0)
    aucs = pairs[both] / (positive * negative)[both]
    return GroupAUCs(aucs, (positive + negative)[both], int(sizes[both].sum()))


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
    p = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
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
