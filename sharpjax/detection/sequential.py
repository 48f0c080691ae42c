r"""When a verdict needs no more noises: what further ones could still change.

A verdict goes by the mean of `N` noises on one or the other side of a threshold $\tau$.  After
`n` of them, whose mean is $\bar y_n$, the mean of all differs from it by

$$\bar y_N - \bar y_n = \tfrac{N - n}{N} (\bar y_\text{rest} - \bar y_n) ,
\qquad \operatorname{Var} = \sigma^2 \Bigl(\tfrac1n - \tfrac1N\Bigr) ,$$

where $\sigma$ is the standard deviation of one noise's value about its prompt's mean, which
`sharpjax calibrate` has measured.  The noises stop as soon as

$$|\bar y_n - \tau| > z\, \sigma \sqrt{1/n - 1/N} ,\qquad \Phi(-z) = \text{error} / (N - 1) ,$$

so that the chance of another verdict than that of all `N` is at most `error` in `N - 1` looks, as
far as the values of a prompt are normal with this deviation (stochastic curtailment: K. K. G. Lan,
R. Simon & M. Halperin, Sequential Analysis 1 (1982) 207, doi:10.1080/07474948208836014).  It
says nothing of whether the verdict is true: the threshold's own error rates do.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from sharpjax._checks import positive_integer
from sharpjax.detection.calibration import Threshold
from sharpjax.detection.evaluation import fraction

ERROR = 0.01  # chance of another verdict than that of all noises


@dataclasses.dataclass(frozen=True, kw_only=True)
class UntilSure:
    """The rule for one column.

    Attributes:
        column: that decides.
        threshold: its value, in the statistic's units.
        noise: standard deviation of one noise's value, in the same.
        most: noises at most, `N`.
        error: chance of another verdict than theirs, over all looks.
    """

    column: str
    threshold: float
    noise: float
    most: int
    error: float = ERROR

    def __post_init__(self) -> None:
        positive_integer("most", self.most, least=2)
        fraction("error", self.error)
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ValueError(f"noise must be a positive number, got {self.noise}")

    @classmethod
    def of(cls, column: str, limit: Threshold, *, most: int) -> "UntilSure":
        """By a threshold that knows how much noises differ.

        Raises:
            ValueError: it does not: it is of an earlier version, or was set on one noise.
        """
        if limit.noise is None:
            raise ValueError(
                f"the calibration does not say how much {column} differs between noises; make one "
                "by sharpjax calibrate with --noises 2 or more"
            )
        return cls(column=column, threshold=limit.value, noise=limit.noise, most=most)

    def sure(self, values: Sequence[float]) -> bool:
        """Whether further noises are not to change the verdict of these.

        >>> rule = UntilSure(column="score_difference@981", threshold=1.0, noise=0.1, most=4)
        >>> rule.sure([1.2]), rule.sure([1.3]), rule.sure([1.2, 1.2]), rule.sure([1.0] * 4)
        (False, True, True, True)
        """
        count = len(values)
        if count >= self.most:
            return True
        quantile = -float(ndtri(self.error / (self.most - 1)))
        reach = quantile * self.noise * math.sqrt(1 / count - 1 / self.most)
        return abs(float(np.mean(values)) - self.threshold) > reach
