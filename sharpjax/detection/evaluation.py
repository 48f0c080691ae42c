"""How well a statistic tells memorized from other conditions, and how sure that is."""

import dataclasses

import numpy as np
from scipy import stats
from sklearn.metrics import roc_curve


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
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
    """

    auc: Interval
    tpr: Interval
    average_precision: Interval
    num_positive: int
    num_negative: int


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
    positive, negative = _classes(scores, memorized)
    rate = nearest_tpr if nearest else tpr_at_fpr
    rng = np.random.default_rng(seed)
    draws = np.array(
        [_figures(p, n, rate) for p, n in _resamples(positive, negative, num_bootstrap, rng)]
    )
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    values = _figures(positive, negative, rate)
    return Evaluation(
        *(Interval(*map(float, figure)) for figure in zip(values, low, high, strict=True)),
        len(positive),
        len(negative),
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
    pairs = [_classes(scores, memorized) for scores in (first, second)]
    positive, negative = (np.stack(parts, axis=1) for parts in zip(*pairs, strict=True))

    def difference(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        one, other = (np.array(_figures(p[:, k], n[:, k])[:2]) for k in (0, 1))
        return one - other

    rng = np.random.default_rng(seed)
    draws = np.array(
        [difference(p, n) for p, n in _resamples(positive, negative, num_bootstrap, rng)]
    )
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    auc, tpr = (
        Interval(*map(float, figure))
        for figure in zip(difference(positive, negative), low, high, strict=True)
    )
    sides = np.mean(draws[:, 0] <= 0), np.mean(draws[:, 0] >= 0)
    return Comparison(auc, tpr, float(min(1.0, 2 * min(sides))))


def _classes(scores: np.ndarray, memorized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checked scores of the memorized conditions and of the others."""
    scores, memorized = np.asarray(scores, np.float64), np.asarray(memorized, bool)
    if scores.ndim != 1 or scores.shape != memorized.shape:
        raise ValueError(
            f"scores and memorized must be equally long vectors, got {scores.shape} and "
            f"{memorized.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores contain NaN or infinite values; nothing can be ranked")
    positive, negative = scores[memorized], scores[~memorized]
    if not len(positive) or not len(negative):
        raise ValueError(
            "detection needs both classes, "
            f"got {len(positive)} memorized and {len(negative)} others"
        )
    return positive, negative


def _resamples(positive: np.ndarray, negative: np.ndarray, count: int, rng: np.random.Generator):
    """Both classes resampled, rows with replacement, ``count`` times."""
    p = rng.integers(len(positive), size=(count, len(positive)))
    n = rng.integers(len(negative), size=(count, len(negative)))
    return ((positive[i], negative[j]) for i, j in zip(p, n, strict=True))


def _figures(positive: np.ndarray, negative: np.ndarray, rate=None) -> tuple[float, float, float]:
    """AUC, true-positive rate and average precision, by ranks: many times a resample.

    The AUC is the mean over pairs of ``[p > n] + [p = n]/2`` (Mann & Whitney 1947).  The average
    precision is the mean over positives of the precision at the threshold that lets it pass
    (``sklearn.metrics.average_precision_score``).
    """
    positive, negative = np.sort(positive), np.sort(negative)
    below = np.searchsorted(negative, positive, side="left")
    upto = np.searchsorted(negative, positive, side="right")
    auc = (below + upto).mean() / (2 * len(negative))
    passed = len(positive) - np.searchsorted(positive, positive, side="left")
    precision = passed / (passed + len(negative) - below)
    return auc, (rate or tpr_at_fpr)(positive, negative), precision.mean()


def roc(scores: np.ndarray, memorized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(false-positive rates, true-positive rates)`` of the ROC curve."""
    fpr, tpr, _ = roc_curve(memorized, scores, drop_intermediate=False)
    return fpr, tpr


def tpr_at_fpr(positive: np.ndarray, negative: np.ndarray, *, limit: float = 0.01) -> float:
    """The largest true-positive rate of any threshold whose false-positive rate is <= ``limit``.

    With ``N`` negatives at most ``floor(limit N)`` of them may pass; a positive counts only if it
    lies strictly above the first negative that may not.
    """
    allowed = int(limit * len(negative) + 1e-9)
    return float(np.mean(positive > np.sort(negative)[::-1][allowed]))


def nearest_tpr(positive: np.ndarray, negative: np.ndarray, *, target: float = 0.01) -> float:
    """The true-positive rate at the point of the ROC whose false-positive rate is nearest.

    Of several such points the one with the largest true-positive rate; the papers' way, which lets
    more than 1% pass where negatives are few.
    """
    scores = np.concatenate([positive, negative])
    memorized = np.arange(len(scores)) < len(positive)
    fpr, tpr = roc(scores, memorized)
    distance = np.abs(fpr - target)
    return float(tpr[distance <= distance.min() + 1e-12].max())


def spearman(values: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Rank correlation of a statistic with the set size, and its two-sided p-value.

    NaN where nothing can be ranked: fewer than three conditions, or all of one size or value.
    """
    if len(values) < 3 or len(np.unique(sizes)) < 2 or len(np.unique(values)) < 2:
        return float("nan"), float("nan")
    result = stats.spearmanr(values, sizes)
    return float(result.statistic), float(result.pvalue)


def wilson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion.

    E. B. Wilson, J. Amer. Statist. Assoc. 22 (1927), doi:10.1080/01621459.1927.10502953.
    """
    interval = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
