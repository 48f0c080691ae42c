"""How well a statistic tells memorized from other conditions, and how sure that is."""

import dataclasses

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve


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
        num_positive: memorized conditions.
        num_negative: the others; the false-positive rate has steps of ``1 / num_negative``.
    """

    auc: Interval
    tpr: Interval
    num_positive: int
    num_negative: int


def evaluate(
    scores: np.ndarray, memorized: np.ndarray, *, num_bootstrap: int = 2000, seed: int = 0
) -> Evaluation:
    """AUC and TPR at FPR <= 1% with percentile bootstrap intervals.

    Args:
        scores: ``(n,)``, larger means memorized.
        memorized: ``(n,)`` booleans.
        num_bootstrap: resamples, drawn within each class so that both are always there.
        seed: of the resamples.

    Raises:
        ValueError: a class is empty, shapes differ, or a score is not finite.

    >>> evaluate(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True])).auc.value
    1.0
    """
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
    draws = _bootstrap(positive, negative, num_bootstrap, np.random.default_rng(seed))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    auc, tpr = float(roc_auc_score(memorized, scores)), tpr_at_fpr(positive, negative)
    return Evaluation(
        Interval(auc, low[0], high[0]),
        Interval(tpr, low[1], high[1]),
        len(positive),
        len(negative),
    )


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


def _bootstrap(
    positive: np.ndarray, negative: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """AUC and TPR of resamples, ``(count, 2)``.

    The AUC is the mean over pairs of ``[p > n] + [p = n]/2`` (Mann & Whitney 1947), so that of a
    resample is the same table averaged with the resample's multiplicities.
    """
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    p = rng.integers(len(positive), size=(count, len(positive)))
    n = rng.integers(len(negative), size=(count, len(negative)))
    draws = np.empty((count, 2))
    for row in range(count):
        draws[row] = (
            wins[np.ix_(p[row], n[row])].mean(),
            tpr_at_fpr(positive[p[row]], negative[n[row]]),
        )
    return draws


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
