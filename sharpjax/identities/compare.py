"""How the two sides of an identity are compared: "right" and "wrong" come from numbers.

Each comparison takes batches of draws, `(left, closed form[, printed form])` with one number a
draw each, and the number of standard errors that chance is granted. Means are accumulated, so that
no more than a batch is held.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

# A printed form is wrong when it is off by more than this many standard errors, and right when it
# agrees and a relative error of RESOLUTION would have been seen.
WRONG = 6.0
RESOLUTION = 0.05
# Between two float64 computations of one number. Rounding reaches 1e-12 near zeros of the score,
# where F has a large derivative; a wrong formula is off by far more.
ROUNDING = 1e-9
# A printed form without an expectation is held to its value at this many draws.
NUM_POINTS = 16

TINY = np.finfo(np.float64).tiny  # in place of a zero to divide by

Batches = Iterator[tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found.

    Attributes:
        kind: "mean" (two means over draws), "exact" (two numbers at every draw) or "bound".
        estimate: the left side: its mean, its value at one draw (the worst if the two differ by
            more than rounding), or the observed error.
        standard_error: of `estimate - closed_form`; of `estimate` for a bound; 0 without a mean.
        closed_form: the right side.
        deviation: "mean": standard errors between the two; "exact": their relative difference;
            "bound": the observed error as a share of the bound, less the standard errors that
            chance is granted.
        limit: the identity holds if `|deviation| <= limit`.
        num_draws: how many draws were compared.
        num_violations: where every draw was compared: how many did not obey.
        printed: the smallest and the largest value of the printed form.
        printed_z: standard errors between the estimate and the printed form, where it is worst.
        printed_verdict: "right", "wrong" or "not separable" with this many draws; of a row also
            "not claimed" (the source states it for other settings) and "not seen" (its text).
    """

    kind: str
    estimate: float
    standard_error: float
    closed_form: float
    deviation: float
    limit: float
    num_draws: int
    num_violations: int | None = None
    printed: tuple[float, float] | None = None
    printed_z: float | None = None
    printed_verdict: str | None = None

    @property
    def z(self) -> float | None:
        """The z-score of a comparison of means."""
        return self.deviation if self.kind == "mean" else None

    @property
    def verdict(self) -> str:
        """Of the correct form: "holds" or "fails"."""
        return "holds" if abs(self.deviation) <= self.limit else "fails"  # NaN fails


def equal_means(batches: Batches, limit: float, *, printed_mean: bool = False) -> Comparison:
    """`E[left] = E[closed form]`, by the mean of their difference over the draws.

    A printed form without an expectation claims the value at every draw, and is held to it at the
    first few; with `printed_mean` it is a mean over the draws too.
    """
    left, right, difference = Moments(), Moments(), Moments()
    printed, printed_difference, points = Moments(), Moments(), None
    for values, closed, *claimed in batches:
        left.add(values)
        right.add(closed)
        difference.add(values - closed)
        if claimed:
            points = claimed[0][:NUM_POINTS] if points is None else points
            printed.add(claimed[0])
            printed_difference.add(values - claimed[0])
    compared = Comparison(
        kind="mean",
        estimate=left.mean,
        standard_error=difference.standard_error,
        closed_form=right.mean,
        deviation=_ratio(difference.mean, difference.standard_error),
        limit=limit,
        num_draws=left.count,
    )
    if points is None:
        return compared
    error = left.standard_error
    if printed_mean:
        points, error = np.array([printed.mean]), printed_difference.standard_error
    worst = points[np.argmax(np.abs(points - left.mean))]
    z = _ratio(left.mean - worst, error)
    scale = max(abs(left.mean), abs(worst))
    return dataclasses.replace(
        compared,
        printed=(float(points.min()), float(points.max())),
        printed_z=z,
        printed_verdict=_judge_printed(z, error / scale if scale else 0.0, limit),
    )


def equal_at_every_draw(batches: Batches, limit: float) -> Comparison:
    """`left = closed form` at every draw, to rounding; `limit` is of no use here."""
    left, right = _joined(batches)
    errors = np.abs(left - right) / np.maximum(np.maximum(np.abs(left), np.abs(right)), TINY)
    worst = int(np.argmax(errors))
    # Which draw is the worst of those that agree is rounding's choice, another on each machine.
    shown = 0 if errors[worst] <= ROUNDING else worst
    return Comparison(
        kind="exact",
        estimate=float(left[shown]),
        standard_error=0.0,
        closed_form=float(right[shown]),
        deviation=float(errors[worst]),
        limit=ROUNDING,
        num_draws=len(left),
        num_violations=int(np.sum(~(errors <= ROUNDING))),
    )


_bound = functools.partial(Comparison, kind="bound", limit=1.0)


def bounds_the_mean(batches: Batches, limit: float) -> Comparison:
    """`|E[left]| <= max closed form`, but for the error that chance is granted."""
    left, right = _joined(batches)
    moments = Moments()
    moments.add(left)
    observed, error, largest = abs(moments.mean), moments.standard_error, float(right.max())
    certain = max(observed - limit * error, 0.0)  # in this order NaN stays NaN
    return _bound(
        estimate=observed,
        standard_error=error,
        closed_form=largest,
        deviation=_ratio(certain, largest),
        num_draws=len(left),
    )


def bounds_every_draw(
    batches: Batches, limit: float, *, share: float = 0.0, centred: bool = False
) -> Comparison:
    """`left <= closed form` at every draw but a share of them; `limit` is of no use here.

    `centred` compares the distance of the left side from its mean. The draw that is shown is the
    worst one that counts: at most a share of the draws exceed their bound if it does not.
    """
    left, right = _joined(batches)
    observed = np.abs(left - left.mean()) if centred else left
    ratios = observed / np.maximum(right, TINY)
    worst = int(np.argsort(ratios)[len(ratios) - 1 - math.floor(share * len(ratios))])
    return _bound(
        estimate=float(observed[worst]),
        standard_error=0.0,
        closed_form=float(right[worst]),
        deviation=float(ratios[worst]),
        num_draws=len(left),
        num_violations=int(np.sum(~(ratios <= 1.0))),
    )


class Moments:
    """Count, mean and sum of squared distances from it, batch by batch.

    Two batches join as `mean = mean_1 + delta n_2/n` and `M = M_1 + M_2 + delta^2 n_1 n_2/n`,
    `delta = mean_2 - mean_1` (Chan, Golub and LeVeque, doi:10.1080/00031305.1983.10483115), which
    keeps the digits that `E[x^2] - E[x]^2` would lose.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Take in a batch."""
        mean, count = float(values.mean()), len(values)
        total, delta = self.count + count, mean - self.mean
        self._squares += float(np.sum((values - mean) ** 2))
        self._squares += delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return math.sqrt(self._squares / (self.count - 1) / self.count)


def _joined(batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    left, right = zip(*batches, strict=True)
    return np.concatenate(left), np.concatenate(right)


def _ratio(difference: float, unit: float) -> float:
    """`difference/unit`; of a unit of zero, 0 or infinite."""
    if unit > 0:
        return difference / unit
    return 0.0 if difference == 0 else math.copysign(math.inf, difference)


def _judge_printed(z: float, relative_error: float, limit: float) -> str:
    if abs(z) > WRONG:
        return "wrong"
    if abs(z) <= limit and limit * relative_error <= RESOLUTION:
        return "right"
    return "not separable"
