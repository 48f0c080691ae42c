r"""Copying against fidelity: curves of methods, how sure they are, and who is better.

Every method has a strength; more of it copies less and shows less of what was asked for.  So a
method is a curve of points (copy rate, fidelity), and methods are compared by their curves:

- **bands**: 95% percentile bootstrap, of prompts and, within each drawn prompt, of seeds (a
  two-level bootstrap, Davison & Hinkley 1997, section 3.8, doi:10.1017/CBO9780511802843), the same
  draws for all methods;
- **hypervolume**: area of the part of the unit square that some strength of the method is at least
  as good as: :math:`\{(u, v): \exists k\; u \le 1 - \text{copy rate}_k,\ v \le
  \text{fidelity}_k\}` (Zitzler & Thiele 1999, doi:10.1109/4235.797969).  1 is perfect;
- **success**: an image that is no copy and shows what was asked for; two methods, each at its
  chosen strength, are compared by a sign-flip test on their differences prompt by prompt;
- **chosen strength**: on other prompts than those judged: the lowest copy rate among strengths
  whose fidelity is at least 90% of the reference, that of clean prompts without mitigation; where
  none is, the one with the most successes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sharpjax.curvature.validation import positive_integer
from sharpjax.detection.evaluation import FEWEST_RESAMPLES, Interval
from sharpjax.reprs import one_line

KEPT = 0.9  # fraction of the clean prompts' fidelity that mitigation should keep


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What became of the images of one method at one strength.

    Attributes:
        method: its name.
        strength: its parameter; of no consequence where a method has none.
        copied: ``(prompts, seeds)`` booleans: a copy of any memorized image.
        other: likewise: a copy of another image than the prompt's own.
        fidelity: ``(prompts, seeds)``: whether, or how much, each shows what was asked for.
        evaluations: of the network, an image, sampling included.
        seconds: an image.

    Raises:
        ValueError: the three are not of one shape, or not finite.
    """

    method: str
    strength: float
    copied: np.ndarray
    other: np.ndarray
    fidelity: np.ndarray
    evaluations: float
    seconds: float

    __repr__ = one_line

    def __post_init__(self) -> None:
        shapes = [np.shape(one) for one in (self.copied, self.other, self.fidelity)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(
                f"copied, other and fidelity must be of one shape (prompts, seeds), got {shapes}"
            )
        if not all(np.isfinite(one).all() for one in (self.copied, self.other, self.fidelity)):
            raise ValueError(f"outcomes of {self.method} contain NaN or infinite ones")

    @property
    def success(self) -> np.ndarray:
        """``(prompts, seeds)``: fidelity of what is no copy, 0 of copies."""
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
        difference: mean, with its 95% bootstrap interval.
        p_value: of the two-sided sign-flip test that neither is better.
    """

    difference: Interval
    p_value: float


def curves(
    outcomes: Sequence[Outcomes], *, num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, Curve]:
    """Every method's curve, in the order of the outcomes.

    Raises:
        ValueError: no outcomes, or of different prompts or seeds; fewer than 100 resamples.
    """
    shapes = {one.copied.shape for one in outcomes} | {one.fidelity.shape for one in outcomes}
    if len(shapes) != 1:
        raise ValueError(f"outcomes must be of the same prompts and seeds, got shapes {shapes}")
    draws = _draws(next(iter(shapes)), num_bootstrap, seed)
    found = {}
    for name in dict.fromkeys(one.method for one in outcomes):
        mine = [one for one in outcomes if one.method == name]
        copy, show, good = (
            np.stack([_means(values, draws) for values in column])
            for column in (
                [one.copied for one in mine], [one.fidelity for one in mine],
                [one.success for one in mine],
            )
        )  # fmt: skip
        points = tuple(
            Point(
                one,
                _interval(one.copied.mean(), copy[k]),
                _interval(one.fidelity.mean(), show[k]),
                _interval(one.success.mean(), good[k]),
            )
            for k, one in enumerate(mine)
        )
        whole = hypervolume([(one.copied.mean(), one.fidelity.mean()) for one in mine])
        volumes = np.array(
            [hypervolume(list(zip(copy[:, b], show[:, b], strict=True))) for b in range(len(draws))]
        )
        found[name] = Curve(name, points, _interval(whole, volumes))
    return found


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area dominated by points ``(copy rate, fidelity)``, both in [0, 1].

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


def choose(outcomes: Sequence[Outcomes], *, reference: float) -> Outcomes:
    """The strength of one method, on prompts that it is not judged by.

    Args:
        outcomes: of one method at all its strengths.
        reference: fidelity of clean prompts without mitigation.
    """
    able = [one for one in outcomes if one.fidelity.mean() >= KEPT * reference]
    if able:
        return min(able, key=lambda one: (one.copied.mean(), -one.fidelity.mean()))
    return max(outcomes, key=lambda one: one.success.mean())


def paired(ours: Outcomes, theirs: Outcomes, *, num_bootstrap: int = 1000, seed: int = 0) -> Paired:
    """Whether one method has more success than another on the same prompts and seeds.

    Of up to 13 prompts all sign flips are tried, of more 9,999 drawn ones and the observed signs:
    the p-value is never 0.

    Raises:
        ValueError: the outcomes are of different prompts or seeds; fewer than 100 resamples.
    """
    if ours.copied.shape != theirs.copied.shape:
        raise ValueError(
            "paired outcomes must be of the same prompts and seeds, got shapes "
            f"{ours.copied.shape} and {theirs.copied.shape}"
        )
    difference = ours.success - theirs.success
    each = difference.mean(axis=1)
    draws = _draws(difference.shape, num_bootstrap, seed)
    p_value = 1.0
    if np.any(each != 0):
        from scipy.stats import permutation_test  # a second, which most uses do not need

        p_value = permutation_test(
            (each,), np.mean, permutation_type="samples", n_resamples=9999,
            rng=np.random.default_rng(seed),
        ).pvalue  # fmt: skip
    return Paired(_interval(each.mean(), _means(difference, draws)), float(p_value))


def _draws(shape: tuple[int, int], count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Resampled prompts ``(prompts, 1)`` and, within each, seeds ``(prompts, seeds)``."""
    rng = np.random.default_rng(seed)
    count = positive_integer("num_bootstrap", count, least=FEWEST_RESAMPLES)
    prompts, seeds = shape
    return [
        (rng.integers(prompts, size=(prompts, 1)), rng.integers(seeds, size=shape))
        for _ in range(count)
    ]


def _means(values: np.ndarray, draws: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.array([values[drawn].mean() for drawn in draws])


def _interval(value: float, resampled: np.ndarray) -> Interval:
    return Interval(float(value), *map(float, np.quantile(resampled, [0.025, 0.975])))


def relative_reduction(point: Point, baseline: Point) -> float:
    """How much of the copying without mitigation is gone: 0 nothing, 1 all; NaN of nothing."""
    before = baseline.copy_rate.value
    return 1 - point.copy_rate.value / before if before > 0 else float("nan")
