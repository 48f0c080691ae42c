r"""Intervals of detection figures that hold for few conditions, and where classes are far apart.

**A share**, of a number of trials that need not be whole: E. B. Wilson's (J. Amer. Statist. Assoc.
22 (1927) 209, doi:10.1080/01621459.1927.10502953).  **Of images of prompts**, which
are not independent, the trials are as many as would have the variance that the prompts' means show
(E. L. Korn & B. I. Graubard, Survey Methodology 24 (1998) 193; with Wilson's interval C. Franco et
al., J. Survey Statist. Methodol. 7 (2019) 334, doi:10.1093/jssam/smy019), no more than images, and
widened by Student's t; where all prompts agree they are as many as prompts.

**An AUC.** Its ends are the $\theta$ with

$$
(\hat\theta - \theta)^2 = t^2 \, \frac{\kappa + \nu r}{\kappa + \nu} \, V(\theta), \quad
V(\theta) = \frac{\theta (1 - \theta)}{mn} \Bigl(1 + N \frac{1 - \theta}{2 - \theta}
+ N \frac{\theta}{1 + \theta}\Bigr), \quad r = \frac{\hat V}{V(\hat\theta)}:
$$

a score interval, whose variance is that at $\theta$ itself, so that it stays within [0, 1].
*V* is the variance under exponential scores as in method 5 of R. G. Newcombe (Statist. Med. 25
(2006) 559, doi:10.1002/sim.2324), there with $N = (m + n) / 2 - 1$, here with the larger
class's size less one, which is safer where the classes are unequal.  $\hat V$ is DeLong's
estimate (E. R. DeLong et al., Biometrics 44 (1988) 837, doi:10.2307/2531595), whatever the scores
are.  It is believed as far as it can be known: $\nu$ are its degrees of freedom, by
Satterthwaite, each class's by the kurtosis of its placements, and *V* weighs as much as
$\kappa = 3$.  Where DeLong's is the larger it is believed whole if that is wider.

**Of a perfect AUC** nothing can be estimated, and the limit is exact instead, whatever the scores
are: all pairs are right with probability at most $\theta^{\min(m, n)}$.  (Of `n <= m`: let
$T_j$ be the share of memorized scores above the j-th other one; they are independent with
mean $\theta$, and all pairs are right with probability
$E \min_j T_j^m \le E \prod_j T_j = \theta^n$.)

**Of a difference**, from the intervals of both and their correlation: G. Y. Zou & A. Donner
(Statist. Med. 27 (2008) 1693, doi:10.1002/sim.3095).  Its p-value is the level at which it ends
at 0, so that p < 0.05 exactly if the 95% interval does not hold 0.

**A true-positive rate at a false-positive rate** *f*: the threshold is the quantile of the others'
scores that *f* of them exceed, and is not known.  How many of `n` lie beyond it is binomial,
$K \sim B(n, f)$, whatever their distribution; between which two of them it lies, and so how
many memorized ones are beyond, follows from *K*.  The limits are the quantiles of the mixture of
Jeffreys' beta distributions over *K*, hence carry the threshold's own uncertainty.  Where in a gap
the quantile lies is not known: half-way, but in the three outermost gaps of either side, which are
wide, at the worse end.  Where `K = 0` has a probability of 2.5% or more (below 368 others for
1%) the quantile may lie beyond all that was seen: the lower limit is 0 and the upper one has all
5%.

`benchmarks/interval_coverage.py` measures how often each holds the true figure.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import betainc, ndtri, stdtrit

_ASSUMED = 3.0  # weight of the assumed variance, in degrees of freedom
_STEPS = 50  # of bisection
ALPHA = 0.05  # one less the level of an interval

# Of every memorized condition the share of others below it, and of every other one the share of
# memorized ones above it; ties count half. The mean of either is the AUC.
Placements = tuple[np.ndarray, np.ndarray]
Ends = tuple[float, float]


def share(value: float, trials: float, *, alpha: float = ALPHA) -> Ends:
    """Wilson's interval of a share.

    >>> tuple(round(end, 3) for end in share(0.0, 12))
    (0.0, 0.242)
    """
    z = -float(ndtri(alpha / 2))
    middle = (value + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = max(value * (1 - value), 0.0) / trials + z**2 / (4 * trials**2)
    half = z / (1 + z**2 / trials) * np.sqrt(spread)
    # exact where rounding would leave 1e-17
    low = max(float(middle - half), 0.0) if value > 0 else 0.0
    return low, min(float(middle + half), 1.0) if value < 1 else 1.0


def mean(values: np.ndarray) -> Ends:
    """95% interval of a mean of prompts, values from 0 to 1: `(prompts, seeds)`."""
    prompts = len(values)
    if prompts < 2:
        return float("nan"), float("nan")
    variance = float(values.mean(axis=1).var(ddof=1)) / prompts
    return clustered(float(values.mean()), variance, prompts, most=values.size)


def clustered(value: float, variance: float, clusters: int, *, most: int) -> Ends:
    """The module's 95% interval of a share whose variance was estimated from clusters.

    >>> tuple(round(end, 3) for end in clustered(0.0, 0.0, 12, most=60))
    (0.0, 0.242)
    """
    if variance == 0:  # all alike: of every cluster one trial
        return share(value, clusters)
    student = float(stdtrit(clusters - 1, ALPHA / 2)) / float(ndtri(ALPHA / 2))
    # at least one, for values that are no shares, as cosines
    return share(value, max(min(value * (1 - value) / variance, most), 1) / student**2)


def difference(first: float, second: float, ends: Sequence[Ends], correlation: float) -> Ends:
    """Zou and Donner's interval of one figure less another, from the intervals of both."""
    (low, high), (other_low, other_high) = ends

    def distance(a: float, b: float) -> float:
        return float(np.sqrt(max(a**2 + b**2 - 2 * correlation * a * b, 0.0)))

    return (
        first - second - distance(first - low, other_high - second),
        first - second + distance(high - first, second - other_low),
    )


def auc(placements: Placements) -> Callable[[float], Ends]:
    """The module's interval of an AUC, a function of alpha, one less the level."""
    value, sizes = float(placements[0].mean()), np.array([len(one) for one in placements])
    extra, pairs = float(sizes.max()) - 1, float(sizes.prod())

    def variance(auc: float) -> float:
        tails = (1 - auc) / (2 - auc) + auc / (1 + auc)
        return auc * (1 - auc) * (1 + extra * tails) / pairs

    parts = np.array(covariance(placements, placements))
    total, ratio, trusted, freedom, plain = float(parts.sum()), 0.0, 0.0, 0.0, 1.0
    if total > 0:
        ratio = total / variance(value)
        known = np.array([_freedom(one) for one in placements])
        freedom, plain = (total**2 / float(np.sum(parts**2 / each)) for each in (known, sizes - 1))
        trusted = (_ASSUMED + freedom * ratio) / (_ASSUMED + freedom)

    def ends(alpha: float) -> Ends:
        if value in (0.0, 1.0):
            limit = (alpha / 2) ** (1 / float(sizes.min()))
            return (limit, 1.0) if value == 1.0 else (0.0, 1 - limit)
        scale = float(ndtri(alpha / 2)) ** 2
        if total > 0:
            scale = float(stdtrit(freedom + _ASSUMED, alpha / 2)) ** 2 * trusted
            if ratio > 1:
                scale = max(scale, float(stdtrit(plain, alpha / 2)) ** 2 * ratio)

        def near(x: float) -> bool:
            return (x - value) ** 2 <= scale * variance(x)

        return _bisect(value, 0.0, near), _bisect(value, 1.0, near)

    return ends


def _freedom(sample: np.ndarray) -> float:
    """Of the variance of a sample: that of a variance is (kurtosis - 1) / n of its square."""
    deviations = sample - sample.mean()
    if (square := float(np.mean(deviations**2))) == 0:
        return float(len(sample) - 1)
    kurtosis = float(np.mean(deviations**4)) / square**2
    return min(2 * len(sample) / max(kurtosis - 1, 0.5), len(sample) - 1)


def covariance(one: Placements, other: Placements) -> list[float]:
    """DeLong's estimate for the AUCs of two statistics: what each class adds to it."""
    return [float(np.cov(a, b)[0, 1] / len(a)) for a, b in zip(one, other, strict=True)]


def auc_difference(one: Placements, other: Placements) -> Callable[[float], Ends]:
    """Of the first AUC less the second, a function of alpha."""
    spreads = [sum(covariance(each, each)) for each in (one, other)]
    # where one of them is perfect nothing is known of it: as if independent
    common = sum(covariance(one, other)) if min(spreads) > 0 else 0.0
    correlation = float(common / np.sqrt(np.prod(spreads))) if common else 0.0
    first, second = (float(each[0].mean()) for each in (one, other))
    both = auc(one), auc(other)
    return lambda alpha: difference(first, second, [ends(alpha) for ends in both], correlation)


def p_value(interval: Callable[[float], Ends], *, least: float) -> float:
    """Of the null hypothesis 0: the `alpha` at which an interval ends there, or the least."""

    def holds(logarithm: float) -> bool:
        low, high = interval(float(np.exp(logarithm)))
        return low <= 0 <= high

    bottom = float(np.log(least))
    return float(np.exp(_bisect(bottom, 0.0, holds))) if holds(bottom) else least


def _bisect(inside: float, outside: float, holds: Callable[[float], bool]) -> float:
    """The last point from `inside` on where it holds; `outside` if everywhere."""
    if holds(outside):
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return outside


@functools.cache
def _binomial(n: int, probability: float) -> np.ndarray:
    from scipy.stats import binom  # a second, which most uses do not need

    return binom(n, probability).pmf(np.arange(n + 1))


def rate(
    memorized: np.ndarray, others: np.ndarray, false_positives: float, *, alpha: float = ALPHA
) -> Ends:
    """The module's interval of the true-positive rate at a false-positive rate.

    Args:
        memorized: scores, `(m,)`.
        others: scores, `(n,)`.
        false_positives: rate, from 0 to 1.
        alpha: one less the level.
    """
    from scipy.optimize import brentq  # half a second, which most uses do not need

    m, n = len(memorized), len(others)
    thresholds = np.concatenate([[np.inf], np.sort(others)[::-1]])
    beyond = m - np.searchsorted(np.sort(memorized), thresholds, side="right")
    count = np.arange(n + 1)  # of others beyond the true threshold: K
    chances = _binomial(n, false_positives)
    fewer, more = beyond, np.append(beyond[1:], m)
    outermost = np.minimum(count, n - count) <= 2
    fewer, more = (np.where(outermost, one, (fewer + more) / 2) for one in (fewer, more))
    # of what may lie beyond all that was seen nothing is known, and the other limit has both tails
    unknown = [chance >= alpha / 2 for chance in (chances[0], chances[-1])]
    kept = chances > 1e-12

    def quantile(a: np.ndarray, b: np.ndarray, probability: float) -> float:
        """Of the mixture of beta distributions; `a = 0` is the point 0, `b = 0` the point 1."""
        # where several counts of others leave as many memorized beyond, their parts are one
        parts, part = np.unique(np.stack([a, b])[:, kept], axis=1, return_inverse=True)
        weights = np.bincount(part, chances[kept])
        a, b = parts

        def below(x: float) -> float:
            inner = betainc(np.maximum(a, 1e-9), np.maximum(b, 1e-9), x)
            return float(weights @ np.where(a == 0, 1.0, np.where(b == 0, 0.0, inner)))

        if below(0.0) >= probability:
            return 0.0
        if below(1.0) < probability:
            return 1.0
        return brentq(lambda x: below(x) - probability, 0.0, 1.0)

    # Jeffreys' (c + 1/2, m - c + 1/2), exact where none or all are beyond
    low, high = 0.0, 1.0
    if not unknown[0]:
        low = quantile(
            np.where(fewer == 0, 0, np.where(fewer == m, m, fewer + 0.5)),
            np.where(fewer == m, 1, m - fewer + 0.5),
            alpha if unknown[1] else alpha / 2,
        )
    if not unknown[1]:
        high = quantile(
            np.where(more == 0, 1, more + 0.5),
            np.where(more == m, 0, np.where(more == 0, m, m - more + 0.5)),
            1 - (alpha if unknown[0] else alpha / 2),
        )
    return low, high
