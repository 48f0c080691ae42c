"""How well a statistic tells memorized from other conditions, and how sure that is."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from sharpjax._reprs import one_line
from sharpjax.detection import intervals

FEWEST = 5  # of a class: of fewer an interval says next to nothing
_RATE = 0.01  # of false positives


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
        tpr: true-positive rate at the largest threshold with false-positive rate <= 1%. Its
            interval is that of the rate at a true false-positive rate of 1%, the threshold's own
            uncertainty included: with fewer than 368 others it begins at 0.
        average_precision: mean precision over the memorized conditions, each at its own rank. It
            depends on how many of each class there are, so it has no interval.
        num_positive: memorized conditions.
        num_negative: the others; the false-positive rate has steps of `1 / num_negative`.

    `pd.json_normalize(dataclasses.asdict(evaluation))` is a row of a table, with `auc.value`,
    `auc.low` and so on.
    """

    auc: Interval
    tpr: Interval
    average_precision: float
    num_positive: int
    num_negative: int


def evaluate(scores: np.ndarray, memorized: np.ndarray) -> Evaluation:
    """AUC and TPR at FPR <= 1%, with the 95% intervals of `.intervals`; average precision.

    Args:
        scores: `(n,)`, larger means memorized.
        memorized: `(n,)` booleans, or 1 and 0.

    Raises:
        ValueError: a class is empty, shapes differ, a score is not finite, or `memorized` holds
            something else.

    >>> print(evaluate(np.arange(40.0), np.arange(40) >= 20).auc)
    1.000 [0.832, 1.000]
    """
    curve = _Curve(scores, memorized)
    auc, tpr, average_precision = curve.figures()
    own, others = curve.classes
    ends = [(np.nan, np.nan)] * 2
    if not curve.has_few:
        ends = [
            intervals.auc(curve.placements())(intervals.ALPHA),
            intervals.rate(own, others, _RATE),
        ]
    return Evaluation(
        Interval(auc, *ends[0]),
        Interval(tpr, *ends[1]),
        average_precision,
        num_positive=len(own),
        num_negative=len(others),
    )


def placements(scores: np.ndarray, memorized: np.ndarray) -> intervals.Placements:
    """Of each memorized condition the share of others below it, and the other way round.

    What `intervals.auc` makes an interval of any level from.

    Raises:
        ValueError: as `evaluate`.
    """
    return _Curve(scores, memorized).placements()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One statistic against another on the same conditions.

    Attributes:
        auc: of the first less that of the second.
        p_value: two-sided, of equal AUCs: below 0.05 exactly if the 95% interval does not hold 0.
            Never below `2^(1 - n)`, the least that exchanging the two on each of n conditions can
            give; NaN where there are too few to tell.
    """

    auc: Interval
    p_value: float


def compare(first: np.ndarray, second: np.ndarray, memorized: np.ndarray) -> Comparison:
    """One statistic against another, paired, by `.intervals.auc_difference`.

    Two that order all conditions alike are one statistic: the difference is 0, its interval too.

    Args:
        first: `(n,)` scores, larger means memorized.
        second: likewise, of the same conditions.
        memorized: `(n,)` booleans, or 1 and 0.

    Raises:
        ValueError: as `evaluate`.

    >>> scores, memorized = np.arange(40.0), np.arange(40) >= 20
    >>> print(compare(scores, -scores, memorized).auc)
    1.000 [0.762, 1.000]
    """
    one, other = (_Curve(scores, memorized) for scores in (first, second))
    places = one.placements(), other.placements()
    value = float(places[0][0].mean() - places[1][0].mean())
    if one.has_few:
        return Comparison(Interval(value, np.nan, np.nan), float("nan"))
    if np.array_equal(one.order, other.order) and np.array_equal(one.ends, other.ends):
        return Comparison(Interval(0.0, 0.0, 0.0), 1.0)
    interval = intervals.auc_difference(*places)
    least = max(2.0 ** (1 - len(one.scores)), float(np.finfo(float).tiny))
    return Comparison(
        Interval(value, *interval(intervals.ALPHA)), intervals.p_value(interval, least=least)
    )


class _Curve:
    """A ROC curve: memorized and other conditions at or above each distinct score."""

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
    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the memorized conditions and of the others."""
        return self.scores[self.memorized], self.scores[~self.memorized]

    @property
    def has_few(self) -> bool:
        """Whether a class has too few for an interval."""
        return min(map(len, self.classes)) < FEWEST

    def placements(self) -> intervals.Placements:
        """Of both classes, `(memorized,)` and `(others,)`."""
        memorized, others = self.classes
        return _share_below(memorized, others), 1 - _share_below(others, memorized)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Other and memorized conditions at or above each distinct score, from none on."""
        ranked = self.memorized[self.order]
        false, true = (
            np.concatenate([[0], np.cumsum(chosen)[self.ends]]) for chosen in (~ranked, ranked)
        )
        return false, true

    def figures(self) -> tuple[float, float, float]:
        """AUC, true-positive rate and average precision.

        The AUC is the area of the trapezoids under the curve: ties count half.  The average
        precision is the mean over memorized conditions of the precision at the threshold that lets
        each pass.
        """
        false, true = self.points()
        num_false, num_true = false[-1], true[-1]
        area = np.trapezoid(true, false) / (num_false * num_true)
        # as whole negatives: 0.01 * 300 is a little less than 3
        passing = false <= np.floor(_RATE * num_false + 1e-9)
        precision = true[1:] / np.maximum(true[1:] + false[1:], 1)
        average = np.sum(np.diff(true) * precision) / num_true
        return float(area), float(true[passing].max() / num_true), float(average)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Corrected p-values: below a level for at least one true hypothesis as seldom as it says.

    S. Holm's step-down procedure, Scand. J. Statist. 6 (1979) 65.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, float)
    order, count = np.argsort(p), len(p)
    corrected = np.empty(count)
    corrected[order] = np.maximum.accumulate((count - np.arange(count)) * p[order])
    return np.minimum(corrected, 1.0)


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
    """The share of `among` below each value; ties count half."""
    ordered = np.sort(among)
    below, upto = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (below + upto) / (2 * len(ordered))


def fraction(name: str, value: float) -> float:
    """A number in (0, 1), or a ValueError that names it."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value!r}; for 95% write 0.95")
    return value


def roc(scores: np.ndarray, memorized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(false-positive rates, true-positive rates)` of the ROC curve.

    Raises:
        ValueError: as `evaluate`.
    """
    false, true = _Curve(scores, memorized).points()
    return false / false[-1], true / true[-1]


def roc_band(
    scores: np.ndarray, memorized: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pointwise 95% band of the true-positive rate, `(false-positive rates, low, high)`.

    That of `.intervals.rate` at 101 rates from 0 to 1: it holds at each by itself, not for the
    whole curve at once.

    Raises:
        ValueError: as `evaluate`.

    >>> rates, low, high = roc_band(np.arange(40.0), np.arange(40) >= 20)
    >>> round(float(low[50]), 2), float(high[50])  # at half of the others
    (0.83, 1.0)
    """
    classes, grid = _Curve(scores, memorized).classes, np.linspace(0, 1, 101)
    ends = np.array([intervals.rate(*classes, float(rate)) for rate in grid])
    return grid, ends[:, 0], ends[:, 1]


def spearman(values: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Rank correlation of a statistic with the set size, and its two-sided p-value.

    Of fewer than ten conditions the p-value is by permutations (all of them up to seven), of more
    by Student's t, and never below `2 / n!`, the least that `n` orders can give.  NaN where
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
        options = {"permutation_type": "pairings", "n_resamples": 9999, "vectorized": True}
        rng = np.random.default_rng(0)
        sums = lambda x, axis: np.sum(x * others, axis=axis)
        p_value = permutation_test((ranks,), sums, **options, rng=rng).pvalue
    else:
        p_value = max(found.pvalue, 2 * np.exp(-gammaln(n + 1)), np.finfo(float).tiny)
    return float(found.statistic), float(p_value)
