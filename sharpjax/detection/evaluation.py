"""How well a statistic tells memorized from other conditions, and how sure that is."""

import dataclasses

import numpy as np

from sharpjax.reprs import one_line

FEWEST = 5  # of a class: resamples of fewer hardly differ, and an interval from them is too short


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and its 95% interval; its ends are NaN where there are too few to tell."""

    value: float
    low: float
    high: float

    __repr__ = one_line

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.value:.3f} [-]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Detection figures of one statistic.

    Attributes:
        auc: area under the ROC curve: the probability that a memorized condition scores above
            another one, ties counting half.
        tpr: true-positive rate at the largest threshold with false-positive rate <= 1%.
        average_precision: mean precision over the memorized conditions, each at its own rank.
        num_positive: memorized conditions.
        num_negative: the others; the false-positive rate has steps of ``1 / num_negative``.
        nearest: whether ``tpr`` is that of the false-positive rate nearest to 1%.

    ``pd.json_normalize(dataclasses.asdict(evaluation))`` is a row of a table, with ``auc.value``,
    ``auc.low`` and so on.
    """

    auc: Interval
    tpr: Interval
    average_precision: Interval
    num_positive: int
    num_negative: int
    nearest: bool = False


def evaluate(
    scores: np.ndarray,
    memorized: np.ndarray,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
    nearest: bool = False,
) -> Evaluation:
    """AUC, TPR at FPR <= 1% and average precision, with percentile bootstrap intervals.

    Args:
        scores: ``(n,)``, larger means memorized.
        memorized: ``(n,)`` booleans.
        num_bootstrap: resamples, drawn within each class so that both are always there.
        seed: of the resamples.
        nearest: take the point of the ROC curve whose false-positive rate is nearest to 1%, as the
            papers do, above it or not.

    Raises:
        ValueError: a class is empty, shapes differ, or a score is not finite.

    >>> evaluate(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True])).auc.value
    1.0
    """
    curve = _Curve(scores, memorized)
    rows = _resamples(curve.memorized, num_bootstrap, np.random.default_rng(seed))
    low, high = np.quantile(curve.figures(rows, nearest=nearest), [0.025, 0.975], axis=0)
    if min(curve.memorized.sum(), (~curve.memorized).sum()) < FEWEST:
        low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
    values = curve.figures(np.ones_like(rows[:1]), nearest=nearest)[0]
    auc, tpr, average_precision = (
        Interval(*map(float, figure)) for figure in zip(values, low, high, strict=True)
    )
    return Evaluation(
        auc,
        tpr,
        average_precision,
        int(curve.memorized.sum()),
        int((~curve.memorized).sum()),
        nearest,
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One statistic against another on the same conditions.

    Attributes:
        auc: of the first less that of the second.
        tpr: likewise, at a false-positive rate <= 1%.
        p_value: two-sided, of equal AUCs: twice the smaller share of resamples on either side of 0.
    """

    auc: Interval
    tpr: Interval
    p_value: float


def compare(
    first: np.ndarray,
    second: np.ndarray,
    memorized: np.ndarray,
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap: every resample of conditions is judged by both statistics.

    Args:
        first: ``(n,)`` scores, larger means memorized.
        second: likewise, of the same conditions.
        memorized: ``(n,)`` booleans.
        num_bootstrap: resamples.
        seed: of the resamples.

    Raises:
        ValueError: as :func:`evaluate`.

    >>> scores, memorized = np.arange(40.0), np.arange(40) >= 20
    >>> compare(scores, -scores, memorized, num_bootstrap=50).auc.value
    1.0
    """
    curves = [_Curve(scores, memorized) for scores in (first, second)]
    rows = _resamples(curves[0].memorized, num_bootstrap, np.random.default_rng(seed))

    def difference(rows: np.ndarray) -> np.ndarray:
        one, other = (curve.figures(rows)[:, :2] for curve in curves)
        less: np.ndarray = one - other
        return less

    draws = difference(rows)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    auc, tpr = (
        Interval(*map(float, figure))
        for figure in zip(difference(np.ones_like(rows[:1]))[0], low, high, strict=True)
    )
    sides = [float(np.mean(draws[:, 0] <= 0)), float(np.mean(draws[:, 0] >= 0))]
    return Comparison(auc, tpr, min(1.0, 2 * min(sides)))


class _Curve:
    """A ROC curve whose points are counted under any weights of the conditions."""

    def __init__(self, scores: np.ndarray, memorized: np.ndarray):
        scores, self.memorized = np.asarray(scores, np.float64), np.asarray(memorized, bool)
        if scores.ndim != 1 or scores.shape != self.memorized.shape:
            raise ValueError(
                f"scores and memorized must be equally long vectors, got {scores.shape} and "
                f"{self.memorized.shape}"
            )
        if not np.isfinite(scores).all():
            raise ValueError("scores contain NaN or infinite values; nothing can be ranked")
        if self.memorized.all() or not self.memorized.any():
            raise ValueError(
                f"detection needs both classes, got {self.memorized.sum()} memorized and "
                f"{(~self.memorized).sum()} others"
            )
        self.order = np.argsort(-scores, kind="stable")
        ranked = scores[self.order]
        self.ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of equal scores

    def _counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Memorized and other conditions at or above each distinct score, from none on."""
        ranked, memorized = weights[:, self.order], self.memorized[self.order]
        true, false = (
            np.pad(np.cumsum(ranked * chosen, axis=1)[:, self.ends], ((0, 0), (1, 0)))
            for chosen in (memorized, ~memorized)
        )
        return true, false

    def points(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """False- and true-positive rates of the curve, ``(r, points)``, of weights ``(r, n)``."""
        true, false = self._counts(weights)
        return false / false[:, -1:], true / true[:, -1:]

    def figures(self, weights: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """AUC, true-positive rate and average precision, ``(r, 3)``, of weights ``(r, n)``.

        Weights are how often each condition is counted.  The AUC is the area of the trapezoids
        under the curve: ties count half.  The average precision is the mean over memorized
        conditions of the precision at the threshold that lets each pass.
        """
        true, false = self._counts(weights)
        num_true, num_false = true[:, -1:], false[:, -1:]
        steps = np.diff(true, axis=1)
        area = np.sum(np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2, axis=1)
        auc = area / (num_true * num_false)[:, 0]
        if nearest:
            distance = np.abs(false / num_false - 0.01)
            passing = distance <= distance.min(axis=1, keepdims=True) + 1e-12
        else:  # as whole negatives: 0.01 * 300 is a little less than 3
            passing = false <= np.floor(0.01 * num_false + 1e-9)
        tpr = np.max(np.where(passing, true, 0), axis=1) / num_true[:, 0]
        precision = true[:, 1:] / np.maximum(true[:, 1:] + false[:, 1:], 1)
        return np.stack([auc, tpr, np.sum(steps * precision, axis=1) / num_true[:, 0]], axis=1)


def _resamples(memorized: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each condition stands in each resample, ``(count, n)``; both classes keep size."""
    weights = np.zeros((count, len(memorized)), np.int64)
    for chosen in (memorized, ~memorized):
        places = np.flatnonzero(chosen)
        drawn = rng.integers(len(places), size=(count, len(places)))
        weights[:, places] = [np.bincount(row, minlength=len(places)) for row in drawn]
    return weights


def roc(scores: np.ndarray, memorized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(false-positive rates, true-positive rates)`` of the ROC curve."""
    from sklearn.metrics import roc_curve  # a second, which most uses do not need

    fpr, tpr, _ = roc_curve(memorized, scores, drop_intermediate=False)
    return fpr, tpr


def roc_band(
    scores: np.ndarray,
    memorized: np.ndarray,
    *,
    num_bootstrap: int = 500,
    num_points: int = 101,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pointwise band of the true-positive rate, ``(false-positive rates, low, high)``.

    Percentiles over resamples within each class, as those of :func:`evaluate`; the band holds at
    each false-positive rate by itself, not for the whole curve at once.

    Args:
        scores: ``(n,)``, larger means memorized.
        memorized: ``(n,)`` booleans.
        num_bootstrap: resamples.
        num_points: false-positive rates from 0 to 1.
        seed: of the resamples.
        level: of the band.

    Raises:
        ValueError: as :func:`evaluate`.

    >>> fpr, low, high = roc_band(np.arange(40.0), np.arange(40) >= 20, num_bootstrap=50)
    >>> float(low.min()), float(high.max())  # perfectly apart: no doubt at any rate
    (1.0, 1.0)
    """
    curve = _Curve(scores, memorized)
    rows = _resamples(curve.memorized, num_bootstrap, np.random.default_rng(seed))
    grid = np.linspace(0, 1, num_points)
    draws = np.empty((num_bootstrap, num_points))
    for draw, (false, true) in zip(draws, zip(*curve.points(rows), strict=True), strict=True):
        # the largest rate reached at no more false positives: a curve of steps
        draw[:] = true[np.searchsorted(false, grid + 1e-12, side="right") - 1]
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return grid, low, high


def spearman(values: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Rank correlation of a statistic with the set size, and its two-sided p-value.

    NaN where nothing can be ranked: fewer than three conditions, or all of one size or value.
    """
    if len(values) < 3 or len(np.unique(sizes)) < 2 or len(np.unique(values)) < 2:
        return float("nan"), float("nan")
    from scipy.stats import spearmanr  # a second, which most uses do not need

    result = spearmanr(values, sizes)
    return float(result.statistic), float(result.pvalue)


def wilson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion.

    E. B. Wilson, J. Amer. Statist. Assoc. 22 (1927), doi:10.1080/01621459.1927.10502953.
    """
    from scipy.stats import binomtest  # a second, which most uses do not need

    interval = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
