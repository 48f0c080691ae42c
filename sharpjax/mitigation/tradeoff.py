r"""Copying against fidelity: curves of methods, how sure they are, and who is better.

Every method has a strength; more of it copies less and shows less of what was asked for.  So a
method is a curve of points (copy rate, fidelity), and methods are compared by their curves:

- **intervals**: 95%, with the prompt as the unit (`sharpjax.detection.intervals.mean`); of a
  hypervolume by the jackknife over prompts; of a difference from those of both methods;
- **hypervolume**: area of the part of the unit square that some strength of the method is at least
  as good as: $\{(u, v): \exists k\; u \le 1 - \text{copy rate}_k,\ v \le
  \text{fidelity}_k\}$ (Zitzler & Thiele 1999, doi:10.1109/4235.797969).  1 is perfect;
- **success**: an image that is no copy and shows what was asked for; two methods, each at its
  chosen strength, are compared by a sign-flip test on their differences prompt by prompt;
- **strengths are chosen on other prompts than those judged**, three times: the one with the most
  successes (`best`); the most successful one that copies in 5% of the images at most (`few`); and
  of those that keep 90% of the fidelity of clean prompts without mitigation the one that copies
  least (`faithful`).  Where no strength does, the method has no such point.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sharpjax._reprs import one_line
from sharpjax.detection import intervals
from sharpjax.detection.evaluation import Interval

KEPT = 0.9  # fraction of the clean prompts' fidelity that mitigation should keep
FEW = 0.05  # of the images copy


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What became of the images of one method at one strength.

    Attributes:
        method: its name.
        strength: its parameter; of no consequence where a method has none.
        copied: `(prompts, seeds)` booleans: a copy of any memorized image.
        other: likewise: a copy of another image than the prompt's own.
        fidelity: `(prompts, seeds)`: whether, or how much, each shows what was asked for.
        evaluations: of the network, an image, sampling included.
        seconds: an image.
        refused: `(prompts, seeds)`: no noise was found for it; nothing is shown, nothing copied.
        maker: likewise: whether it is by the maker that was asked for; NaN where any will do.
        diversity: `(prompts,)` one less the mean likeness of two images; NaN of a single one.

    Raises:
        ValueError: what there is of each image is not of one shape, or the first three not finite.
    """

    method: str
    strength: float
    copied: np.ndarray
    other: np.ndarray
    fidelity: np.ndarray
    evaluations: float
    seconds: float
    refused: np.ndarray | None = None
    maker: np.ndarray | None = None
    diversity: np.ndarray | None = None

    __repr__ = one_line

    def __post_init__(self) -> None:
        more = [one for one in (self.refused, self.maker) if one is not None]
        shapes = [np.shape(one) for one in (self.copied, self.other, self.fidelity, *more)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(f"outcomes must be of one shape (prompts, seeds), got {shapes}")
        if not all(np.isfinite(one).all() for one in (self.copied, self.other, self.fidelity)):
            raise ValueError(f"outcomes of {self.method} contain NaN or infinite ones")

    @property
    def success(self) -> np.ndarray:
        """`(prompts, seeds)`: fidelity of what is no copy, 0 of copies."""
        return np.where(self.copied, 0.0, self.fidelity)


@dataclasses.dataclass(frozen=True)
class Point:
    """One strength of a method, with 95% intervals.

    Attributes:
        outcomes: what it is computed from.
        copy_rate: fraction of images that copy any memorized image.
        fidelity: mean.
        success: mean fidelity, copies counting 0.
    """

    outcomes: Outcomes
    copy_rate: Interval
    fidelity: Interval
    success: Interval


@dataclasses.dataclass(frozen=True)
class Curve:
    """A method over its strengths.

    Attributes:
        method: its name.
        points: from the weakest strength to the strongest, as given.
        hypervolume: of all of them together, with its 95% interval.
    """

    method: str
    points: tuple[Point, ...]
    hypervolume: Interval


@dataclasses.dataclass(frozen=True)
class Paired:
    """Success of one method less that of another, prompt by prompt.

    Attributes:
        difference: mean, with its 95% interval.
        p_value: of the two-sided sign-flip test that neither is better.
    """

    difference: Interval
    p_value: float


def curves(outcomes: Sequence[Outcomes]) -> dict[str, Curve]:
    """Every method's curve, in the order of the outcomes.

    Raises:
        ValueError: no outcomes, or of different prompts or seeds.
    """
    shapes = {one.copied.shape for one in outcomes} | {one.fidelity.shape for one in outcomes}
    if len(shapes) != 1:
        raise ValueError(f"outcomes must be of the same prompts and seeds, got shapes {shapes}")
    found = {}
    for name in dict.fromkeys(one.method for one in outcomes):
        mine = [one for one in outcomes if one.method == name]
        points = tuple(
            Point(one, _mean(one.copied), _mean(one.fidelity), _mean(one.success)) for one in mine
        )
        found[name] = Curve(name, points, _volume(mine))
    return found


def _mean(values: np.ndarray) -> Interval:
    return Interval(float(values.mean()), *intervals.mean(values))


def _volume(outcomes: Sequence[Outcomes]) -> Interval:
    """Of a method's strengths together; its variance from leaving out each prompt in turn."""
    rates = np.stack([[one.copied.mean(1), one.fidelity.mean(1)] for one in outcomes])
    prompts = rates.shape[-1]
    value = hypervolume(rates.mean(-1))
    if prompts < 2:
        return Interval(value, np.nan, np.nan)
    without = (rates.sum(-1, keepdims=True) - rates) / (prompts - 1)
    each = np.array([hypervolume(without[..., k]) for k in range(prompts)])
    variance = float(np.sum((each - each.mean()) ** 2)) * (prompts - 1) / prompts
    most = outcomes[0].copied.size
    return Interval(value, *intervals.clustered(value, variance, prompts, most=most))


def hypervolume(points: Sequence[tuple[float, float]] | np.ndarray) -> float:
    """Area dominated by points `(copy rate, fidelity)`, both in [0, 1].

    >>> hypervolume([(1.0, 1.0)]), hypervolume([(0.0, 1.0)])
    (0.0, 1.0)
    >>> round(hypervolume([(0.5, 0.8), (0.0, 0.4), (0.9, 0.3)]), 6)  # the last is dominated
    0.6
    """
    area, right = 0.0, 0.0
    # from the highest down: each adds what lies to the right of all that are higher
    for copy_rate, fidelity in sorted(points, key=lambda point: -point[1]):
        if 1 - copy_rate > right:
            area += (1 - copy_rate - right) * fidelity
            right = 1 - copy_rate
    return float(area)


def best(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Of one method's strengths the one with the most successes; of equal ones the first."""
    return max(outcomes, key=lambda one: one.success.mean())


def few(outcomes: Sequence[Outcomes]) -> Outcomes | None:
    """The most successful of those that copy in `FEW` of the images at most; None without one."""
    able = [one for one in outcomes if one.copied.mean() <= FEW]
    return best(able) if able else None


def faithful(outcomes: Sequence[Outcomes], *, reference: float) -> Outcomes | None:
    """Of those that keep `KEPT` of the fidelity the one that copies least; None without one.

    Args:
        outcomes: of one method at all its strengths.
        reference: fidelity of clean prompts without mitigation.
    """
    least = KEPT * reference * (1 - 1e-9)  # means of equal numbers differ by rounding
    able = [one for one in outcomes if one.fidelity.mean() >= least]
    return min(able, key=lambda one: (one.copied.mean(), -one.fidelity.mean()), default=None)


def paired(ours: Outcomes, theirs: Outcomes, *, seed: int = 0) -> Paired:
    """Whether one method has more success than another on the same prompts and seeds.

    Of up to 13 prompts all sign flips are tried, of more 9,999 drawn ones and the observed signs:
    the p-value is never 0.  The interval takes the methods to be a little less alike than they
    were, as if two prompts more had nothing in common, so that equal ones differ by some too.

    Raises:
        ValueError: the outcomes are of different prompts or seeds.
    """
    if ours.copied.shape != theirs.copied.shape:
        raise ValueError(
            "paired outcomes must be of the same prompts and seeds, got shapes "
            f"{ours.copied.shape} and {theirs.copied.shape}"
        )
    one, other = _mean(ours.success), _mean(theirs.success)
    means = np.stack([ours.success.mean(axis=1), theirs.success.mean(axis=1)])
    spreads = means.std(axis=1)
    correlation = 0.0
    if spreads.min() > 0:
        correlation = np.corrcoef(means)[0, 1] * means.shape[1] / (means.shape[1] + 2)
    ends = (one.low, one.high), (other.low, other.high)
    low, high = intervals.difference(one.value, other.value, ends, float(correlation))
    each = means[0] - means[1]
    p_value = 1.0
    if np.any(each != 0):
        from scipy.stats import permutation_test  # a second, which most uses do not need

        options = {"permutation_type": "samples", "n_resamples": 9999}
        rng = np.random.default_rng(seed)
        p_value = permutation_test((each,), np.mean, **options, rng=rng).pvalue
    return Paired(Interval(one.value - other.value, low, high), float(p_value))
