r"""Thresholds from prompts that are known to be clean, for a model whose memories are not known.

A statistic's threshold is a quantile of its values on such prompts: the fraction of clean prompts
above it is then the false-positive rate.  How sure it is follows without any assumption on their
distribution: of ``n`` values the number below the true quantile ``q`` is binomial, so that the
order statistics of ranks ``l`` and ``u`` bracket it with probability

.. math:: P(X_{(l)} \le x_q < X_{(u)}) = \sum_{k=l}^{u-1} \binom{n}{k} q^k (1-q)^{n-k} .

(H. A. David & H. N. Nagaraja, Order Statistics, 2003, section 7.1, doi:10.1002/0471722162.)
"""

import dataclasses
import math

import numpy as np
from scipy import stats

QUANTILE = 0.99


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Beyond which a value says *memorized*.

    Attributes:
        value: in the statistic's units.
        low: lower end of the 95% interval of the true quantile; -inf where there are too few
            prompts to say.
        high: upper end; inf likewise.
        direction: ``+1`` if larger values say memorized, ``-1`` if smaller ones do.
        quantile: fraction of clean prompts on this side.
        num_prompts: that it was fixed on.
    """

    value: float
    low: float
    high: float
    direction: int
    quantile: float
    num_prompts: int

    def margin(self, value: float) -> float:
        """How far a value is beyond it: positive says memorized."""
        return self.direction * (value - self.value)


def threshold(
    values: np.ndarray, *, direction: int, quantile: float = QUANTILE, level: float = 0.95
) -> Threshold:
    """The quantile of clean prompts' values, on the side that says memorized.

    Args:
        values: ``(n,)``, of prompts known to be clean.
        direction: of the statistic.
        quantile: fraction of clean prompts that may not be called memorized.
        level: of the interval.

    Raises:
        ValueError: fewer than two values, one that is not finite, or a quantile outside (0, 1).

    >>> print(f"{threshold(np.arange(1000.0), direction=+1).value:.2f}")
    989.01
    >>> print(f"{threshold(np.arange(1000.0), direction=-1).value:.2f}")
    9.99
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"a threshold needs at least two clean prompts, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values of clean prompts contain NaN or infinite ones")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
    ordered = np.sort(direction * values)
    n = len(ordered)
    below = stats.binom(n, quantile)
    # the narrowest ranks whose tails hold no more than (1 - level)/2 each; rank 0 and n + 1 are
    # beyond all values
    tail = (1 - level) / 2
    lower = int(below.ppf(tail))
    upper = int(below.isf(tail)) + 1
    padded = np.concatenate([[-math.inf], ordered, [math.inf]])
    low, high = padded[lower], padded[min(upper, n + 1)]
    if direction < 0:
        low, high = -high, -low
    value = direction * float(np.quantile(ordered, quantile))
    return Threshold(value, float(low), float(high), direction, quantile, n)
