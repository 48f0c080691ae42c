r"""How well a statistic tells memorized from other conditions, and how sure that is.

**Interval of an AUC.** Its ends are the :math:`\theta` with

.. math:: (\hat\theta - \theta)^2 = z^2 V(\theta) \max(1, r), \quad
   V(\theta) = \frac{\theta (1 - \theta)}{mn} \Bigl(1 + N \frac{1 - \theta}{2 - \theta}
   + N \frac{\theta}{1 + \theta}\Bigr), \quad N = \frac{m + n}{2} - 1:

method 5 of R. G. Newcombe (Statist. Med. 25 (2006) 559, doi:10.1002/sim.2324), whose variance is
that at :math:`\theta` itself, so that the interval stays within [0, 1] and is not empty where the
classes are perfectly apart.  *V* is that of exponential scores; where the scores show a larger one,
by DeLong's estimate :math:`\hat V` (E. R. DeLong et al., Biometrics 44 (1988) 837,
doi:10.2307/2531595) with Student's t of Satterthwaite's degrees of freedom,
:math:`r = (t / z)^2 \hat V / V(\hat\theta)` widens it.  ``benchmarks/auc_coverage.py`` measures how
often such intervals hold the true AUC: in 94% or more, from 6 + 6 to 100 + 100 conditions, equal
or not, of three spreads (at an AUC of 0.856 in 97.8% and 95.4%, where percentiles of resamples do
in 82.5% and 94.0%), and that none of four published intervals does in 94% everywhere.

**Of a difference of AUCs**, from the intervals of both and DeLong's correlation (G. Y. Zou & A.
Donner, Statist. Med. 27 (2008) 1693, doi:10.1002/sim.3095).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, ndtri, stdtrit

from sharpjax.curvature.validation import positive_integer
from sharpjax.reprs import one_line

FEWEST = 5  # of a class: resamples of fewer hardly differ, and an interval from them is too short
FEWEST_RESAMPLES = 100  # of fewer the tails of an interval hold none or a few
_TAILS = (0.025, 0.975)


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
    """AUC, TPR at FPR <= 1% and average precision, with 95% intervals.

    That of the AUC is this module's, which holds for few conditions too.  Those of the TPR and the
    average precision are percentiles of resamples: they say how much these figures hang on single
    conditions, and are too short to hold the true figure where there are few (of 30 + 30 the TPR's
    held it in 21% to 83%).

    Args:
        scores: ``(n,)``, larger means memorized.
        memorized: ``(n,)`` booleans, or 1 and 0.
        num_bootstrap: resamples, at least 100; drawn within each class, so that both are always
            there.
        seed: of the resamples.
        nearest: take the point of the ROC curve whose false-positive rate is nearest to 1%, as the
            papers do, above it or not.

    Raises:
        ValueError: a class is empty, shapes differ, a score is not finite, ``memorized`` holds
            something else, or ``num_bootstrap`` is no integer of at least 100.

    >>> evaluate(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True])).auc.value
    1.0
    """
    curve = _Curve(scores, memorized)
    rows = _resamples(curve.memorized, num_bootstrap, np.random.default_rng(seed))
    low, high = np.quantile(curve.figures(rows, nearest=nearest), _TAILS, axis=0)
    if curve.has_few:
        low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
    else:
        low[0], high[0] = _auc_interval(curve.placements())
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
        p_value: two-sided, of equal AUCs: twice the smaller share of resamples on either side of 0,
            ``min(1, 2 (b + 1) / (num_bootstrap + 1))``; NaN where there are too few to tell.
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
    """One statistic against another, paired: every resample of conditions is judged by both.

    The AUC's interval is this module's, and the TPR's that of the resamples, whose p-value keeps
    its level for few conditions too; an interval of theirs would not (at 6 + 6 it held the true
    difference 56 to 100 times in a hundred, at 12 + 12 85 to 99).  Being the wider, the interval
    may hold 0 where p is below 0.05.

    Args:
        first: ``(n,)`` scores, larger means memorized.
        second: likewise, of the same conditions.
        memorized: ``(n,)`` booleans, or 1 and 0.
        num_bootstrap: resamples.
        seed: of the resamples.

    Raises:
        ValueError: as :func:`evaluate`.

    >>> scores, memorized = np.arange(40.0), np.arange(40) >= 20
    >>> compare(scores, -scores, memorized, num_bootstrap=100).auc.value
    1.0
    """
    curves = [_Curve(scores, memorized) for scores in (first, second)]
    rows = _resamples(curves[0].memorized, num_bootstrap, np.random.default_rng(seed))

    def difference(rows: np.ndarray) -> np.ndarray:
        one, other = (curve.figures(rows)[:, :2] for curve in curves)
        less: np.ndarray = one - other
        return less

    draws = difference(rows)
    low, high = np.quantile(draws, _TAILS, axis=0)
    # the observed conditions are one resample more: a p-value is never 0
    sides = [np.sum(draws[:, 0] <= 0), np.sum(draws[:, 0] >= 0)]
    p_value = min(1.0, 2 * (float(min(sides)) + 1) / (num_bootstrap + 1))
    if curves[0].has_few:
        low, high, p_value = np.full_like(low, np.nan), np.full_like(high, np.nan), float("nan")
    else:
        low[0], high[0] = _difference_interval(*curves)
    auc, tpr = (
        Interval(*map(float, figure))
        for figure in zip(difference(np.ones_like(rows[:1]))[0], low, high, strict=True)
    )
    return Comparison(auc, tpr, p_value)


# Of every memorized condition the share of others below it, and of every other one the share of
# memorized ones above it; ties count half. The mean of either is the AUC.
_Placements = tuple[np.ndarray, np.ndarray]


def _covariance(one: _Placements, other: _Placements) -> list[float]:
    """DeLong's estimate for the AUCs of two statistics: what each class adds to it."""
    return [float(np.cov(a, b)[0, 1] / len(a)) for a, b in zip(one, other, strict=True)]


def _auc_interval(placements: _Placements) -> tuple[float, float]:
    """The module's interval: ends of the values that the data do not speak against."""
    value, (m, n) = float(placements[0].mean()), map(len, placements)
    extra = (m + n) / 2 - 1

    def variance(auc: float) -> float:
        tails = (1 - auc) / (2 - auc) + auc / (1 + auc)
        return auc * (1 - auc) * (1 + extra * tails) / (m * n)

    scale = float(ndtri(_TAILS[1])) ** 2
    parts = np.array(_covariance(placements, placements))
    if variance(value) > 0 and parts.sum() > 0:
        freedom = parts.sum() ** 2 / np.sum(parts**2 / (np.array([m, n]) - 1))
        own = float(stdtrit(freedom, _TAILS[1])) ** 2 * parts.sum() / variance(value)
        scale = max(scale, own)

    def end(outside: float) -> float:
        inside = value
        for _ in range(60):  # bisection, to the last bit
            middle = (inside + outside) / 2
            if (middle - value) ** 2 <= scale * variance(middle):
                inside = middle
            else:
                outside = middle
        return outside

    return end(0.0), end(1.0)


def _difference_interval(first: "_Curve", second: "_Curve") -> tuple[float, float]:
    """Of the first AUC less the second, recovered from the intervals of both."""
    one, other = first.placements(), second.placements()
    difference = float(one[0].mean() - other[0].mean())
    if np.array_equal(first.order, second.order) and np.array_equal(first.ends, second.ends):
        return difference, difference  # one order of the conditions: one statistic
    spreads = [sum(_covariance(each, each)) for each in (one, other)]
    common = sum(_covariance(one, other))
    # where one of them is perfect nothing is known of it: as if independent
    correlation = common / np.sqrt(np.prod(spreads)) if min(spreads) > 0 else 0.0
    (low, high), (other_low, other_high) = map(_auc_interval, (one, other))

    def distance(a: float, b: float) -> float:
        return float(np.sqrt(max(a**2 + b**2 - 2 * correlation * a * b, 0.0)))

    return (
        difference - distance(one[0].mean() - low, other_high - other[0].mean()),
        difference + distance(high - one[0].mean(), other[0].mean() - other_low),
    )


class _Curve:
    """A ROC curve whose points are counted under any weights of the conditions."""

    def __init__(self, scores: np.ndarray, memorized: np.ndarray):
        scores, self.memorized = np.asarray(scores, np.float64), _booleans(memorized)
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
        self.scores = scores
        self.order = np.argsort(-scores, kind="stable")
        ranked = scores[self.order]
        self.ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of equal scores

    @property
    def has_few(self) -> bool:
        """Whether a class has too few for an interval."""
        return min(int(self.memorized.sum()), int((~self.memorized).sum())) < FEWEST

    def placements(self) -> _Placements:
        """Of both classes, ``(memorized,)`` and ``(others,)``."""
        memorized, others = self.scores[self.memorized], self.scores[~self.memorized]
        return _share_below(memorized, others), 1 - _share_below(others, memorized)

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


def _booleans(memorized: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Labels as booleans; NaN, a word or a half is none, and would count as true."""
    given = np.asarray(memorized)
    if given.dtype != bool:
        bad = [value for value in given.ravel().tolist() if value not in (0, 1)]
        if bad:
            raise ValueError(
                f"memorized must hold booleans, or 1 and 0, got {bad[0]!r}"
                + (f" and {len(bad) - 1} others" if len(bad) > 1 else "")
                + "; leave out conditions of which it is not known"
            )
    return given.astype(bool)


def _share_below(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The share of ``among`` below each value; ties count half."""
    ordered = np.sort(among)
    below, upto = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    share: np.ndarray = (below + upto) / (2 * len(ordered))
    return share


def fraction(name: str, value: float) -> float:
    """A number in (0, 1), or a ValueError that names it."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value!r}; for 95% write 0.95")
    return value


def _resamples(memorized: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """How often each condition stands in each resample, ``(count, n)``; both classes keep size."""
    count = positive_integer("num_bootstrap", count, least=FEWEST_RESAMPLES)
    weights = np.zeros((count, len(memorized)), np.int64)
    for chosen in (memorized, ~memorized):
        places = np.flatnonzero(chosen)
        drawn = rng.integers(len(places), size=(count, len(places)))
        weights[:, places] = [np.bincount(row, minlength=len(places)) for row in drawn]
    return weights


def roc(scores: np.ndarray, memorized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(false-positive rates, true-positive rates)`` of the ROC curve.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    curve = _Curve(scores, memorized)
    fpr, tpr = curve.points(np.ones((1, len(curve.order)), np.int64))
    return fpr[0], tpr[0]


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
        ValueError: as :func:`evaluate`, or a level outside (0, 1).

    >>> fpr, low, high = roc_band(np.arange(40.0), np.arange(40) >= 20, num_bootstrap=100)
    >>> float(low.min()), float(high.max())  # perfectly apart: no doubt at any rate
    (1.0, 1.0)
    """
    tail = (1 - fraction("level", level)) / 2
    curve = _Curve(scores, memorized)
    rows = _resamples(curve.memorized, num_bootstrap, np.random.default_rng(seed))
    grid = np.linspace(0, 1, positive_integer("num_points", num_points, least=2))
    draws = np.empty((num_bootstrap, num_points))
    for draw, (false, true) in zip(draws, zip(*curve.points(rows), strict=True), strict=True):
        # the largest rate reached at no more false positives: a curve of steps
        draw[:] = true[np.searchsorted(false, grid + 1e-12, side="right") - 1]
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return grid, low, high


def spearman(values: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Rank correlation of a statistic with the set size, and its two-sided p-value.

    Of fewer than ten conditions the p-value is by permutations (all of them up to seven), of more
    by Student's t, and never below ``2 / n!``, the least that ``n`` orders can give.  NaN where
    nothing can be ranked: fewer than three conditions, or all of one size or value.

    Raises:
        ValueError: they are not equally long vectors of finite numbers.
    """
    values, sizes = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    if values.ndim != 1 or values.shape != sizes.shape:
        raise ValueError(
            f"values and sizes must be equally long vectors, got {values.shape} and {sizes.shape}"
        )
    if not (np.isfinite(values).all() and np.isfinite(sizes).all()):
        raise ValueError("values or sizes contain NaN or infinite ones; nothing can be ranked")
    if len(values) < 3 or len(np.unique(sizes)) < 2 or len(np.unique(values)) < 2:
        return float("nan"), float("nan")
    from scipy.stats import permutation_test, rankdata, spearmanr  # a second, seldom needed

    found, n = spearmanr(values, sizes), len(values)
    if n < 10:
        ranks, others = rankdata(values), rankdata(sizes) - (n + 1) / 2
        p_value = permutation_test(
            (ranks,), lambda x, axis: np.sum(x * others, axis=axis), vectorized=True,
            permutation_type="pairings", n_resamples=9999, rng=np.random.default_rng(0),
        ).pvalue  # fmt: skip
    else:
        p_value = max(found.pvalue, 2 * np.exp(-gammaln(n + 1)), np.finfo(float).tiny)
    return float(found.statistic), float(p_value)


def wilson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion.

    E. B. Wilson, J. Amer. Statist. Assoc. 22 (1927), doi:10.1080/01621459.1927.10502953.

    Raises:
        ValueError: no trials, more successes than trials, or a level outside (0, 1).
    """
    fraction("level", level)
    from scipy.stats import binomtest  # a second, which most uses do not need

    interval = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
