r"""How many copies may be among the images that a screen has accepted.

A miss rate alone bounds nothing, for $P(\text{copy} \mid \text{pass})$ is not $P(\text{pass} \mid
\text{copy})$: with 5% of the copies missed and 5% of the others dropped, a prompt that copies in
97% of its images still has 63% among the accepted ones.  But of any prompt

$$
P(\text{copy} \mid \text{pass}) = \frac{P(\text{pass} \mid \text{copy})\, P(\text{copy})}
{P(\text{pass})} \le \frac{P(\text{pass} \mid \text{copy})}{P(\text{pass})} .
$$

The numerator, the screen's *miss rate*, is bounded from above over prompts whose copies were
verified and that did not set the screen; the denominator from below by this prompt's own tries.
Each limit is of 97.5%, so that the bound holds with 95%.

*The assumption*, which no data of this prompt can check: its copies are missed no more often than
those of the verified prompts are, on average.  The prompt is the unit there: images of one prompt
are not independent, and a binomial limit over pooled images covers less than it says
(`benchmarks/copies_bound.py`).
"""

import dataclasses

import numpy as np
from scipy.special import betaincinv, logsumexp

from sharpjax.detection.evaluation import Interval

ALPHA = 0.025
_STAKES = np.linspace(0.01, 1.0, 100)  # shares of the largest that a bet may be
ASSUMPTION = "this prompt's copies are missed no more often than those of the verified prompts"


@dataclasses.dataclass(frozen=True)
class MissRate:
    """Of a screen, over verified prompts.

    Attributes:
        value: the mean over prompts of the share of their copies that pass.
        upper: its limit, 97.5%.
        prompts: how many of them have copies.
    """

    value: float
    upper: float
    prompts: int


def miss_rate(passed: np.ndarray, copies: np.ndarray, *, alpha: float = ALPHA) -> MissRate:
    r"""The mean miss rate of prompts, with an upper limit whose unit is the prompt.

    With $m_i$ the share of prompt i's copies that pass, a bet against a mean of m multiplies its
    capital by $1 + \lambda (m - m_i)$ at every prompt; if the mean is m or more, the capital is on
    average no more than at the start, for any law of shares from 0 to 1, and exceeds $1/\alpha$
    with probability $\alpha$ at most.  The limit is the smallest m that a mixture of such bets
    refutes, half of it on the largest, $\lambda = 1/(1 - m)$, the other half spread below it.  (I.
    Waudby-Smith & A. Ramdas, J. R. Stat. Soc. B 86 (2024) 1, doi:10.1093/jrsssb/qkad009.)

    Args:
        passed: copies that the screen lets through, of each prompt.
        copies: of each prompt; those without any say nothing and are left out.
        alpha: one less the level of the limit.

    Raises:
        ValueError: fewer than two prompts with copies, or more passed than there are.

    >>> miss_rate(np.array([0, 1, 0, 0]), np.array([8, 8, 7, 0]))
    MissRate(value=0.041666666666666664, upper=0.755..., prompts=3)
    """
    passed, copies = np.asarray(passed, float), np.asarray(copies, float)
    if passed.shape != copies.shape or passed.ndim != 1:
        raise ValueError(
            f"passed and copies must be equally long vectors, got {passed.shape} and {copies.shape}"
        )
    whole = np.array_equal(passed, np.floor(passed)) and np.array_equal(copies, np.floor(copies))
    if not whole or (passed < 0).any() or (passed > copies).any():
        raise ValueError(
            "passed must be whole numbers between 0 and the number of copies of each prompt, got "
            f"{passed.tolist()!s:.80} of {copies.tolist()!s:.80}"
        )
    _check_level(alpha)
    known = copies > 0
    if (count := int(known.sum())) < 2:
        raise ValueError(f"a miss rate needs at least 2 prompts with copies, got {count}")
    return mean_rate(passed[known] / copies[known], alpha=alpha)


def mean_rate(rates: np.ndarray, *, alpha: float = ALPHA) -> MissRate:
    """As `miss_rate`, of prompts whose rates are given: of a rank these are no shares of counts.

    Raises:
        ValueError: fewer than two, or one outside of [0, 1].
    """
    rates = np.asarray(rates, float)
    if rates.ndim != 1 or len(rates) < 2 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(
            f"rates must be at least two numbers from 0 to 1, got {rates.tolist()!s:.80}"
        )
    _check_level(alpha)
    return MissRate(float(rates.mean()), _upper(rates, alpha), len(rates))


def _check_level(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")


def _upper(rates: np.ndarray, alpha: float) -> float:
    """The limit of the mean: by bisection, for the capital grows with the mean that it refutes."""

    def refuted(mean: float) -> bool:
        with np.errstate(divide="ignore"):  # a bet that loses all
            bets = np.log1p(_STAKES[:, None] / (1 - mean) * (mean - rates)).sum(axis=1)
        weights = np.full(len(_STAKES), 0.5 / (len(_STAKES) - 1))
        weights[-1] = 0.5
        return bool(logsumexp(bets, b=weights) >= -np.log(alpha))

    low, high = float(rates.mean()), 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if middle >= 1.0:  # of rates of 1 no mean below is refuted
            break
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def pass_rate(accepted: int, tries: int, *, alpha: float = ALPHA) -> Interval:
    """A prompt's pass rate, accepted images over tries, with exact limits.

    Tries go on until a pass or the end of the budget.  Whatever stops them, few tries an image
    speak for a high rate; the limits are Clopper and Pearson's, each of level `1 - alpha`.

    Raises:
        ValueError: no tries, or more accepted than tried.

    >>> pass_rate(4, 16)
    Interval(value=0.25, low=0.07..., high=0.52...)
    """
    if tries < 1 or not 0 <= accepted <= tries or tries != int(tries) or accepted != int(accepted):
        raise ValueError(
            "accepted must be a whole number between 0 and tries >= 1, another one, got "
            f"{accepted} of {tries}"
        )
    _check_level(alpha)
    low = float(betaincinv(accepted, tries - accepted + 1, alpha)) if accepted else 0.0
    left = tries - accepted
    high = float(betaincinv(accepted + 1, left, 1 - alpha)) if left else 1.0
    return Interval(accepted / tries, low, high)


def copies_bound(missed: MissRate, passed: Interval) -> float:
    """`min(1, m_up / P_low)`: the share of copies among accepted images, at most; 95%.

    Args:
        missed: of the screen, by `miss_rate`.
        passed: of the prompt, by `pass_rate`.

    >>> copies_bound(MissRate(0.02, 0.1, 30), pass_rate(8, 16))
    0.4...
    """
    return 1.0 if passed.low <= missed.upper else missed.upper / passed.low
